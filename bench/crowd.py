"""How much of a fast engine's tokens/s does one interpreter pass on?  Many streams, and an engine that only keeps time.

python bench/crowd.py --concurrency 256 --speed 2.4 --blocks 4

The engine is in a process of its own, as vLLM's front end is on a GPU (`frontend = "process"`), and takes as long as an
8B model on an H200 for its steps (decoding, and prefill of 16 prompts at most), `--speed` times as fast: Python may be
that much faster here than there. Beside the graph: our engine by its pool, and what the engine would do if every answer
were asked for again at once.
"""

import argparse
import asyncio
import json
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from chancellor.bench import PerformanceMonitor, Synthetic
from chancellor.bench.load import Load
from chancellor.bench.targets.local import EngineTarget, GraphTarget
from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, Engine, EnginePool, EngineStats, GenerationRequest
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.engines.vllm_apart_worker import serve

DECODE_S, PREFILL_S, PROMPTS, PIECES_PER_S = 0.014, 0.105, 16, 2000
FINISHED: dict[str, Any] = {"finish_reason": "length", "input_tokens": 512, "engine": "clock"}


class Clock(Engine):
    """Makes a token for each request with each step, and does nothing else."""

    kind = "clock"
    quantization = None
    can_sleep = False
    speed = 1.0

    def __init__(self, spec: ModelSpec, report: Any) -> None:
        self.spec, self._report = spec, report
        self._waiting: deque[tuple[GenerationRequest, asyncio.Queue[int]]] = deque()
        self._awake = asyncio.Event()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        running: dict[int, list[Any]] = {}
        while True:
            if not running and not self._waiting:
                self._awake.clear()
                await self._awake.wait()
            began = loop.time()
            new = [self._waiting.popleft() for _ in range(min(PROMPTS, len(self._waiting)))]
            took = max(DECODE_S, PREFILL_S * len(new) / PROMPTS) / self.speed
            await asyncio.sleep(began + took - loop.time())
            interval = max(1, round(len(running) / took / PIECES_PER_S))
            running |= {id(inbox): [request, inbox, 0, 0] for request, inbox in new}
            for key, one in list(running.items()):
                one[2] += 1
                done = one[2] == one[0].max_tokens
                if done or (one[0].stream and (one[2] == 1 or one[2] - one[3] >= interval)):
                    one[1].put_nowait(one[2] - one[3])
                    one[3] = one[2]
                if done:
                    del running[key]
            self._report(EngineStats(len(running), len(self._waiting), None, 0))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        inbox: asyncio.Queue[int] = asyncio.Queue()
        self._waiting.append((request, inbox))
        self._awake.set()
        made = 0
        while made < request.max_tokens:
            new = await inbox.get()
            made += new
            done = made == request.max_tokens
            last: dict[str, Any] = {**FINISHED, "output_tokens": made} if done else {}
            yield Delta(" two" * new, tuple(range(new)), **last)

    def tokenizer_source(self) -> None:
        return None

    def healthy(self) -> bool:
        return True

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, None, 0)

    async def close(self) -> None:
        self._task.cancel()


def work(speed: float, line: socket.socket, spec: ModelSpec, _: Path) -> None:
    """Stand in for the worker's own."""
    Clock.speed = speed
    clock: Any = Clock
    asyncio.run(serve(line, spec, clock))


class Apart(ApartVLLMEngine):
    """The engine, with a clock at the other end of its line."""

    speed = 1.0

    def _work(self) -> Any:
        # By the module's name: a process of an engine does not run this script as its own main module.
        return partial(import_module(Path(__file__).stem).work, self.speed)

    def tokenizer(self) -> Any:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--no-stream", dest="stream", action="store_false")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    Apart.speed = options.speed
    pool = EnginePool(Apart)
    spec = ModelSpec(name="clock", source="shape:llama-3.1-8b", trinity=99.0, parameters=1)
    targets = [GraphTarget("graph", spec, pool), EngineTarget("engine", spec, pool)]
    workload = Synthetic(64, options.output_tokens)  # how long a prompt is, the clock does not ask
    load = Load(workload, concurrency=options.concurrency, requests=options.requests or 3 * options.concurrency)
    began = time.process_time()
    report = PerformanceMonitor(targets, [load], blocks=options.blocks, stream=options.stream).run()
    used = time.process_time() - began
    prefill = -(-options.concurrency // PROMPTS)
    ideal = (prefill * PREFILL_S + (options.output_tokens - prefill) * DECODE_S) / options.speed
    best = options.concurrency * options.output_tokens / ideal
    found: dict[str, Any] = {"stream": options.stream, "in_step": best, "cpu_s": used}
    for run in report.runs:
        rates = [part.tokens_per_s or 0.0 for part in run.segments]
        itl = run.itl_s.p50 if run.itl_s else None
        ttft = (run.ttft_s.p50, run.ttft_s.p99) if run.ttft_s else (0.0, 0.0)
        found[run.name] = {"tokens_per_s": median(rates), "ttft_p50_s": ttft[0], "ttft_p99_s": ttft[1]}
        print(
            f"{run.name}: {median(rates):,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}), TTFT "
            f"{1e3 * ttft[0]:.0f} / {1e3 * ttft[1]:.0f} ms, ITL p50 {1e3 * (itl or 0):.0f} ms, errors {run.errors}"
        )
    for ratio in report.ratios:
        print(f"graph / {ratio.against}: {ratio.tokens_per_s_ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
    if options.json:
        options.json.write_text(json.dumps({**found, "machine": report.machine.model_dump()}, indent=1) + "\n")
    pool.close()


if __name__ == "__main__":
    main()
