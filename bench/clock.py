"""vLLM over a clock: AsyncLLM and all above it are real, and in place of its engine core is one that only keeps time.

So what Python passes on of a fast engine's tokens shows on a machine without a GPU. The clock's own Python, some 100 us
a step, runs where AsyncLLM does.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Engine
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.engines.vllm_apart_worker import work as vllm_work

DECODE_S: Final = 0.011
PREFILL_S: Final = 0.108
PROMPTS: Final = 16
"""A step, and what it takes longer for so many prompts of 512 tokens that it reads besides: from the times between raw
AsyncLLM's tokens with an 8B model in int8 on an H200, 256 at a time."""


class Clock:
    """Makes a token for each request with each step."""

    engine_ranks_managed: Final = (0,)

    def __init__(self, speed: float) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self._speed = speed
        self._waiting: deque[tuple[float, Any]] = deque()
        self._left: dict[str, int] = {}
        self._came = asyncio.Event()
        self._next = 0.0
        self._random = random.Random(0)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(self, request: Any) -> None:
        self._waiting.append((time.perf_counter(), request))
        self._came.set()

    async def abort_requests_async(self, names: Iterable[str]) -> None:
        gone = set(names)
        self._left = {name: left for name, left in self._left.items() if name not in gone}
        self._waiting = deque(one for one in self._waiting if one[1].request_id not in gone)

    async def reset_prefix_cache_async(self, *_: Any, **__: Any) -> bool:
        return True

    def shutdown(self, timeout: float | None = None) -> None:  # noqa: ARG002 - vLLM's signature
        self.resources.engine_dead = True

    async def get_output_async(self) -> Any:
        """Return what the next step has made. Steps follow on one another, however late anybody looks at them."""
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
        from vllm.v1.metrics.stats import SchedulerStats

        while not self._left and not self._waiting:
            self._came.clear()
            await self._came.wait()
        begin = self._next if self._left else max(self._next, self._waiting[0][0])
        decode, new = DECODE_S if self._left else 0.0, 0
        while self._waiting and new < PROMPTS and self._waiting[0][0] <= begin:
            request = self._waiting.popleft()[1]
            self._left[request.request_id] = request.sampling_params.max_tokens
            new += 1
        self._next = begin + (decode + PREFILL_S * new / PROMPTS) / self._speed
        await asyncio.sleep(self._next - time.perf_counter())
        outputs = []
        for name, left in list(self._left.items()):
            self._left[name] = left - 1
            made = EngineCoreOutput(name, [self._random.randrange(1000, 40000)])
            if left == 1:
                made.finish_reason = FinishReason.LENGTH
                del self._left[name]
            outputs.append(made)
        stats = SchedulerStats(num_running_reqs=len(self._left), num_waiting_reqs=len(self._waiting))
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)


def install(speed: float) -> None:
    """Have this process's engines keep time."""
    from vllm.v1.engine import async_llm

    async_llm.EngineCoreClient = SimpleNamespace(make_async_mp_client=lambda *_, **__: Clock(speed))


def work(speed: float, line: Any, spec: ModelSpec, log: Path) -> None:
    """Serve an engine in a process of its own."""
    install(speed)
    vllm_work(line, spec, log)


class _Apart(ApartVLLMEngine):
    def __init__(self, spec: ModelSpec, speed: float) -> None:
        super().__init__(spec)
        self._speed = speed

    def _work(self) -> Any:
        # By the module's name: a process of an engine does not run the script that imports it as its own.
        return partial(import_module(Path(__file__).stem).work, self._speed)


def clock_engine(spec: ModelSpec, speed: float) -> Engine:
    """Return the entry's engine over a clock, not started; its front end is where the entry says."""
    if spec.engine.frontend == "process":
        return _Apart(spec, speed)
    install(speed)
    return VLLMEngine(spec)
