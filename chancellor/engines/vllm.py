"""vLLM's AsyncLLM, in processes of its own below this one."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.guides import refusal_of, refused
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.hardware import default_dtype
from chancellor.engines.host import in_thread
from chancellor.engines.logs import log_file, refusal_in, shortage_in
from chancellor.engines.phases import following
from chancellor.engines.prompt import prompt_ahead
from chancellor.engines.pulse import Pulse
from chancellor.engines.spawn import engine_spawning, environment, starting
from chancellor.engines.vllm_args import engine_args, process_environment
from chancellor.engines.vllm_continuing import Continuation
from chancellor.engines.vllm_parts import (
    SHUTDOWN_S,
    end,
    engine_processes,
    import_async_llm,
    remove,
    shared_memory,
    stat_logger,
    with_children,
)
from chancellor.engines.vllm_requests import delta_of, sampling_params
from chancellor.errors import (
    ChancellorError,
    EngineDiedError,
    EngineStartError,
    GenerationError,
    OutOfMemoryError,
    PromptTooLongError,
)
from chancellor.quantization.prepare import Prepared, prepare

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["VLLMEngine"]


class VLLMEngine(Engine):
    """One model in vLLM."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._llm: AsyncLLM | None = None
        self._prepared: Prepared | None = None
        self._stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)
        self._processes: list[psutil.Process] = []
        self._sentinels: list[int] = []
        self._before: set[Any] | None = None
        self._exited = self._interrupted = False
        self._facts: dict[str, float] = {}
        self._peaks = 0, 0.0
        self._pulse = Pulse()
        self._segments: set[Path] = set()
        self._answering = 0

    @property
    def quantization(self) -> str | None:
        return self._prepared.scheme if self._prepared else self.spec.scheme

    async def start(self) -> None:
        # Blocks for half a minute and more: on the loop it would hold up every other engine.
        self._llm = await in_thread(self._start)
        self._watch(self._llm)
        try:
            await self._warm_up(self._llm)
        except Exception as error:
            await self.close()
            raise EngineStartError(
                f"vLLM loaded {self.spec.name!r}, but cannot run it.", hint=f"The cause is in its log: {log_file()}"
            ) from error

    def interrupt(self) -> None:
        self._interrupted = True
        if self._llm is not None:  # it may hang in its first steps
            self.kill()
        elif self._before is not None:
            for process in with_children(engine_processes() - self._before):
                with suppress(psutil.Error):
                    process.kill()

    def _watch(self, llm: "AsyncLLM") -> None:
        """Notice when the engine's process is gone. vLLM does so itself, unless the process was asked to end."""
        loop = asyncio.get_running_loop()
        for process in engine_processes() - (self._before or set()):

            def gone(sentinel: int = process.sentinel) -> None:
                loop.remove_reader(sentinel)
                self._sentinels.remove(sentinel)  # its number may be another engine's by the time this one is closed
                if self._llm is llm:
                    self._fail(llm)

            loop.add_reader(process.sentinel, gone)
            self._sentinels.append(process.sentinel)

    def _fail(self, llm: "AsyncLLM") -> None:
        """End all requests: nothing feeds them any more."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._exited = True
        llm.output_processor.propagate_error(EngineDeadError())

    async def _warm_up(self, llm: "AsyncLLM") -> None:
        """Make two tokens: what a kernel cannot do shows now, and the first request is not the slow one."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        sampling = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        async for _ in llm.generate(tokens_input([1, 1]), sampling, "chancellor-warm-up"):
            pass

    def _start(self) -> "AsyncLLM":
        try:
            with starting:
                return self._load()
        except ChancellorError:
            raise
        except Exception as error:
            raise EngineStartError(
                f"The engine of {self.spec.name!r} did not start: {error}", hint=f"Its log may say more: {log_file()}"
            ) from error

    def _load(self) -> "AsyncLLM":
        progress.report("start", self.spec.name, "importing vLLM")
        with environment(process_environment()):
            async_llm = import_async_llm()
        dtype = self.spec.engine.dtype or default_dtype()
        self._prepared = prepared = prepare(self.spec, dtype)
        if self.spec.engine.dtype is None and prepared.dtype is not None:
            dtype = prepared.dtype
        progress.report("start", self.spec.name, "vLLM: starting its processes")
        self._before = engine_processes()
        logged = log_file().stat().st_size
        if self._interrupted:
            raise EngineStartError(f"The start of {self.spec.name!r} was interrupted.")
        try:
            with (
                environment(process_environment()),
                engine_spawning(),
                following(log_file(), self.spec.name) as self._facts,
            ):
                arguments = engine_args(self.spec, prepared, dtype)
                llm: AsyncLLM = async_llm.from_engine_args(arguments, stat_loggers=[stat_logger(self._record)])
        except Exception as error:
            end(with_children(engine_processes() - self._before), timeout_s=0)
            if isinstance(error, ChancellorError):
                raise
            if (shortage := shortage_in(log_file(), logged, error)) is not None and not self._interrupted:
                raise OutOfMemoryError(
                    f"There was not enough memory to start {self.spec.name!r}: {shortage}"
                ) from error
            reason = refusal_in(log_file(), logged) or error
            raise EngineStartError(
                f"vLLM did not start {self.spec.name!r}: {reason}", hint=f"The cause is in its log: {log_file()}"
            ) from error
        self._processes = with_children(engine_processes() - self._before)
        self._pulse = Pulse(self._processes)
        self._segments = shared_memory(self._processes)
        return llm

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm, started = self._running(), time.perf_counter()
        tokenizer, options = llm.get_tokenizer(), self.spec.engine
        plan = plan_of(request, tokenizer, tool_parser=options.tool_parser, reasoning_parser=options.reasoning_parser)
        prompt = await prompt_ahead(tokenizer, request, plan.messages, plan.tools)
        limit = llm.model_config.max_model_len
        size = len(prompt.token_ids)
        if size >= limit:
            raise PromptTooLongError(
                f"The prompt has {size:,} tokens; {self.spec.name!r} takes {limit:,} with the answer."
            )
        first: float | None = None
        produced = len(request.answered)
        continuation = None
        if produced and (size + produced >= limit or produced >= request.max_tokens):  # its end is what got lost
            yield Delta(
                "",
                finish_reason="length",
                input_tokens=size,
                output_tokens=produced,
                model=self.spec.name,
                engine=self.kind,
                quantization=self.quantization,
            )
            return
        self._answering += 1
        try:
            sampling = sampling_params(request, prompt, plan)
            if produced:
                own = {"model": self.spec.name, "engine": self.kind, "quantization": self.quantization}
                continuation = Continuation(request, sampling.clone(), tokenizer, prompt.token_ids, own)
                sampling.stop, sampling.output_text_buffer_length = [], 0
            outputs = llm.generate(
                tokens_input([*prompt.token_ids, *request.answered]), sampling, f"chancellor-{uuid.uuid4().hex}"
            )
            async with aclosing(outputs):
                async for output in outputs:
                    now = time.perf_counter() - started
                    produced += len(output.outputs[0].token_ids)
                    if first is None and request.stream and produced:
                        first = now
                    delta = delta_of(output, self.spec.name, self.quantization, produced, now, first)
                    if continuation is not None:
                        delta = continuation.take(delta, produced, now)
                    yield plan.read(delta) if plan.readers else delta
                    if continuation is not None and continuation.ended:
                        return
        except EngineDeadError as error:
            raise EngineDiedError(
                f"The engine of {self.spec.name!r} ended while it answered.",
                hint=f"Ask again: a new engine starts. The cause is in {log_file()}",
            ) from error
        except ChancellorError:
            raise
        except Exception as error:  # bad parameters and full queues have other classes in each release of vLLM
            if (reason := refusal_of(plan.guide)) is not None:
                raise refused(reason) from error
            cause = error.__cause__ if isinstance(error, EngineGenerateError) and error.__cause__ else error
            raise GenerationError(
                f"vLLM could not answer with {self.spec.name!r}: {cause}", hint=f"Its log says more: {log_file()}"
            ) from error
        finally:
            self._answering -= 1

    def healthy(self) -> bool:
        llm = self._llm  # other threads ask, too
        return llm is not None and not llm.errored and not self._exited

    def stalled(self) -> str | None:
        return self._pulse.stalled(busy=self._answering > 0)

    def kill(self) -> None:
        if self._llm is not None:
            self._fail(self._llm)
        for process in self._processes:
            with suppress(psutil.Error):
                process.kill()

    def _record(self, stats: EngineStats) -> None:
        self._pulse.beat()
        self._stats = stats
        self._peaks = max(self._peaks[0], stats.running), max(self._peaks[1], stats.kv_cache_usage or 0.0)

    def stats(self) -> EngineStats:
        return self._stats

    def peaks(self) -> tuple[int, float | None] | None:
        seen, self._peaks = self._peaks, (0, 0.0)
        return seen

    def tokenizer(self) -> Any | None:
        return self._running().get_tokenizer()

    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def facts(self) -> dict[str, float]:
        return dict(self._facts)

    def inner(self) -> Any:
        return self._running()

    async def forget(self) -> None:
        await self._running().reset_prefix_cache()

    async def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for sentinel in self._sentinels:
            asyncio.get_running_loop().remove_reader(sentinel)
        self._fail(llm)
        if (handler := llm.output_handler) is not None:  # else it would log that the engine died
            handler.cancel()
        await in_thread(lambda: self._shut_down(llm))  # other engines answer on this loop

    def _shut_down(self, llm: "AsyncLLM") -> None:
        llm.shutdown(timeout=SHUTDOWN_S)
        end(self._processes)
        remove(self._segments)

    def _running(self) -> "AsyncLLM":
        if self._llm is None or self._exited:
            raise EngineDiedError(f"The engine of {self.spec.name!r} is not running.")
        return self._llm
