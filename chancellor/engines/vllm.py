"""vLLM's AsyncLLM, in processes of its own below this one."""

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from chancellor.catalog import ModelSpec
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.guides import refusal_of, refused
from chancellor.engines.answers.keywords import bindable
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.host import in_thread
from chancellor.engines.logs import log_file
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.prompt import prompt_ahead
from chancellor.engines.pulse import Pulse
from chancellor.engines.vllm_continuing import Continuation
from chancellor.engines.vllm_loading import load
from chancellor.engines.vllm_pace import Pace
from chancellor.engines.vllm_processes import SHUTDOWN_S, Processes
from chancellor.engines.vllm_requests import delta_of, refused_by_vllm, sampling_params
from chancellor.errors import (
    ChancellorError,
    EngineDiedError,
    EngineStartError,
    GenerationError,
    OutOfMemoryError,
    PromptTooLongError,
)
from chancellor.quantization.prepare import Prepared

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["VLLMEngine"]

logger = logging.getLogger(__name__)


class VLLMEngine(Engine):
    """One model in vLLM."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._llm: AsyncLLM | None = None
        self._prepared: Prepared | None = None
        self._stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)
        self._processes = Processes()
        self._exited = self._interrupted = self._asleep = False
        self._facts: dict[str, float] = {}
        self._peaks = 0, 0.0
        self._pulse = Pulse()
        self._pace = Pace()
        self._answering = 0
        self._postmortem: PostMortem | None = None

    @property
    def quantization(self) -> str | None:
        return self._prepared.scheme if self._prepared else self.spec.scheme

    async def start(self) -> None:
        # Blocks for half a minute and more: on the loop it would hold up every other engine.
        loaded = await in_thread(lambda: load(self.spec, self._processes, self._record, lambda: self._interrupted))
        self._llm = llm = loaded.llm
        self._prepared, self._facts, self._postmortem = loaded.prepared, loaded.facts, loaded.postmortem
        self._pulse = Pulse(self._processes.all)
        self._processes.watch(lambda: self._gone(llm))
        self._answering += 1  # so that it is ended if it hangs
        try:
            await self._warm_up(llm)
        except Exception as error:
            cause = error
            await self.close()
            if (shortage := await in_thread(lambda: self._shortage(cause))) is not None:
                raise OutOfMemoryError(
                    f"vLLM loaded {self.spec.name!r}, but has not enough memory to run it: {shortage}"
                ) from error
            raise EngineStartError(
                f"vLLM loaded {self.spec.name!r}, but cannot run it.", hint=f"The cause is in its log: {log_file()}"
            ) from error
        finally:
            self._answering -= 1

    def _shortage(self, error: Exception) -> str | None:
        return None if self._interrupted or self._postmortem is None else self._postmortem.shortage(error)

    def interrupt(self) -> None:
        self._interrupted = True
        if self._llm is not None:  # it may hang in its first steps
            self.kill()
        else:
            self._processes.kill()

    def _gone(self, llm: "AsyncLLM") -> None:
        if self._llm is llm:
            self._fail(llm)

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

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm, started = self._running(), time.perf_counter()
        tokenizer, options = llm.get_tokenizer(), self.spec.engine
        if request.guide is not None:
            calls = bool(request.tools) and request.tool_choice != "none"  # only xgrammar takes a guide for both
            request = replace(request, guide=bindable(request.guide, xgrammar_only=calls))
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
            if "stream_interval" not in self.spec.engine.vllm:
                # vLLM's parsers of calls and thoughts are made for single tokens.
                self._pace.set(sampling, llm, singly=bool(plan.readers or produced))
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
            if (refusal := refused_by_vllm(cause)) is not None:
                raise refusal from error
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
        self._processes.kill()

    def _record(self, stats: EngineStats) -> None:
        self._pulse.beat()
        self._pace.note(stats.output_tokens or 0)
        self._stats = stats
        self._peaks = max(self._peaks[0], stats.running), max(self._peaks[1], stats.kv_cache_usage or 0.0)

    def stats(self) -> EngineStats:
        return self._stats

    def peaks(self) -> tuple[int, float | None] | None:
        seen, self._peaks = self._peaks, (0, 0.0)
        return seen

    def tokenizer(self) -> Any | None:
        return self._running().get_tokenizer()

    def tokenizer_source(self) -> tuple[str, str | None] | None:
        """Return where the tokenizer comes from, and its revision; None if it is not one of Hugging Face's."""
        from transformers import PreTrainedTokenizerBase

        llm = self._running()
        if not isinstance(llm.get_tokenizer(), PreTrainedTokenizerBase):
            return None
        return llm.model_config.tokenizer, llm.model_config.tokenizer_revision

    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes.all]

    def facts(self) -> dict[str, float]:
        return dict(self._facts)

    def inner(self) -> Any:
        return self._running()

    async def forget(self) -> None:
        await self._running().reset_prefix_cache()

    @property
    def can_sleep(self) -> bool:
        return self._llm is not None and bool(getattr(self._llm.model_config, "enable_sleep_mode", False))

    async def sleep(self) -> None:
        llm, self._asleep = self._running(), True  # from its first moment on
        await llm.sleep(level=1)

    async def wake(self) -> None:
        if await self._running().wake_up() is False:  # newer releases say whether all of it is awake
            raise EngineDiedError(f"The engine of {self.spec.name!r} did not wake up as a whole.")
        self._asleep = False

    async def close(self) -> None:
        if self._asleep:  # vLLM cannot be asked to end in its sleep
            self.kill()
        llm, self._llm = self._llm, None
        if llm is None:
            return
        self._processes.unwatch()
        self._fail(llm)
        if (handler := llm.output_handler) is not None:  # else it would log that the engine died
            handler.cancel()
        await in_thread(lambda: self._shut_down(llm))  # other engines answer on this loop

    def _shut_down(self, llm: "AsyncLLM", patience_s: float = SHUTDOWN_S) -> None:
        try:
            llm.shutdown(timeout=patience_s)
        except Exception:
            logger.warning("vLLM did not shut down %r by itself", self.spec.name, exc_info=True)
        finally:
            self._processes.end(patience_s)

    def _running(self) -> "AsyncLLM":
        if self._llm is None or self._exited:
            raise EngineDiedError(f"The engine of {self.spec.name!r} is not running.")
        return self._llm
