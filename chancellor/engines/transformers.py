"""Plain transformers in a process below this one: slower than vLLM, and it runs what vLLM does not."""

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, ClassVar, Final

import psutil

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.checkpoints.inspect import read_json
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.guides import refusal_of, refused
from chancellor.engines.answers.keywords import bindable
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.hardware import default_dtype, gpu_count
from chancellor.engines.host import in_thread
from chancellor.engines.logs import LOG_VARIABLE, log_file, shortage_in
from chancellor.engines.outbox import Outbox
from chancellor.engines.prompt import prompt_ahead
from chancellor.engines.pulse import Pulse
from chancellor.engines.spawn import OWN_PROCESS, engine_spawning, environment, starting
from chancellor.errors import (
    ChancellorError,
    EngineDiedError,
    EngineStartError,
    GenerationError,
    MissingDependencyError,
    OutOfMemoryError,
    PromptTooLongError,
)
from chancellor.quantization.prepare import Prepared, prepare

__all__ = ["TransformersEngine"]

_END_S: Final = 10.0
_CPU_BATCH: Final = 64
_GPU_BATCH: Final = 256


class TransformersEngine(Engine):
    """One model in transformers: requests that wait together are one batch, which runs to its end."""

    kind: ClassVar[str] = "transformers"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._prepared: Prepared | None = None
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._tokenizer: Any = None
        self._limit = 0
        self._inboxes: dict[str, asyncio.Queue[Any]] = {}
        self._numbers = itertools.count()
        self._running = self._peak = self._recent_peak = 0
        self._produced = 0
        self._interrupted = False
        self._pulse = Pulse()
        self._outbox: Outbox | None = None

    @property
    def quantization(self) -> str | None:
        return self._prepared.scheme if self._prepared else self.spec.scheme

    async def start(self) -> None:
        await in_thread(self._start)
        loop = asyncio.get_running_loop()
        if self._connection is not None:
            loop.add_reader(self._connection.fileno(), self._receive)
            self._outbox = Outbox(self._connection, lambda: _tell(loop, self._lost))

    def interrupt(self) -> None:
        self._interrupted = True
        if self._process is not None and self._connection is None:
            self._process.kill()

    def _start(self) -> None:
        try:
            with starting, progress.endable(lambda: self._interrupted):
                self._load()
        except ChancellorError:
            raise
        except Exception as error:
            raise EngineStartError(
                f"transformers did not start {self.spec.name!r}: {error}", hint=f"Its log says more: {log_file()}"
            ) from error

    def _load(self) -> None:
        try:
            from transformers import AutoTokenizer

            from chancellor.engines.transformers_worker import WorkerOptions, work
        except ImportError as error:
            raise MissingDependencyError.of(error.name) from error
        options = self.spec.engine
        dtype = options.dtype or default_dtype()
        self._prepared = prepared = prepare(self.spec, dtype)
        config = read_json(prepared.folder / "config.json")
        config = config.get("text_config", config)
        self._limit = min(options.max_model_len, int(config.get("max_position_embeddings") or options.max_model_len))
        self._tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
        progress.report("start", self.spec.name, "transformers: loading the weights")
        threads = len(psutil.Process().cpu_affinity()) if gpu_count() == 0 else 4
        logged = log_file().stat().st_size
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        worker_options = WorkerOptions(
            prepared.folder,
            prepared.dtype if options.dtype is None and prepared.dtype else dtype,
            prepared.random_weights,
            prepared.quantize_at_load,
            self.spec.trust_remote_code,
            options.max_num_seqs or (_CPU_BATCH if gpu_count() == 0 else _GPU_BATCH),
            threads,
        )
        with environment({LOG_VARIABLE: str(log_file()), "TOKENIZERS_PARALLELISM": "false"}), engine_spawning():
            process = multiprocessing.get_context("spawn").Process(
                target=work, args=(theirs, worker_options), name=f"{OWN_PROCESS}-{self.spec.name}", daemon=True
            )
            process.start()
        self._process = process
        theirs.close()
        if self._interrupted:
            self._process.kill()
        try:
            ours.recv()  # "ready"
        except EOFError:
            self._process.join(_END_S)
            shortage = shortage_in(log_file(), logged, f"exit code {self._process.exitcode}")
            if shortage is not None and not self._interrupted:
                raise OutOfMemoryError(f"There was not enough memory to start {self.spec.name!r}: {shortage}") from None
            raise EngineStartError(
                f"transformers ended while it loaded {self.spec.name!r} (exit code {self._process.exitcode}).",
                hint=f"The cause is in its log: {log_file()}",
            ) from None
        self._connection = ours
        self._pulse = Pulse([psutil.Process(process.pid)])

    def _receive(self) -> None:
        """Hand what the process sends to whoever waits for it."""
        connection = self._connection
        try:
            while connection is not None and connection.poll():
                kind, *rest = connection.recv()
                self._pulse.beat()
                if kind == "batch":
                    self._running = rest[0]
                    self._peak = max(self._peak, self._running)
                    self._recent_peak = max(self._recent_peak, self._running)
                elif kind == "beat":
                    continue
                elif kind == "pieces":
                    for identity, token, text, logprobs in rest[0]:
                        self._pass_on(identity, ("piece", [[token], text, logprobs]))
                else:
                    self._pass_on(rest[0], (kind, rest[1:]))
        except (EOFError, OSError):
            self._lost()

    def _pass_on(self, identity: str, message: tuple[str, list[Any]]) -> None:
        if (inbox := self._inboxes.get(identity)) is not None:
            inbox.put_nowait(message)

    def _lost(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            if self._outbox is not None:
                self._outbox.close()
            else:
                self._connection.close()
            self._connection = self._outbox = None
        for inbox in self._inboxes.values():
            inbox.put_nowait(("lost", []))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        from chancellor.engines.transformers_worker import Question, Shifts

        sent = time.perf_counter()
        options = self.spec.engine
        if request.guide is not None:
            request = replace(request, guide=bindable(request.guide, xgrammar_only=True))
        plan = plan_of(
            request, self._tokenizer, tool_parser=options.tool_parser, reasoning_parser=options.reasoning_parser
        )
        if plan.guide is not None:  # one that cannot be compiled would fail a whole batch in the worker
            reason = await in_thread(lambda: refusal_of(plan.guide))
            if reason is not None:
                raise refused(reason)
        prompt = await prompt_ahead(self._tokenizer, request, plan.messages, plan.tools)
        room = self._limit - len(prompt.token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(prompt.token_ids):,} tokens; {self.spec.name!r} takes {self._limit:,} with the "
                "answer."
            )
        identity = str(next(self._numbers))
        question = Question(
            identity,
            [*prompt.token_ids, *request.answered],
            min(request.max_tokens, room),
            request.temperature,
            request.top_p,
            request.seed,
            tuple(plan.stop(request, prompt.stop)),
            request.ignore_eos,
            request.stream,
            sent,
            plan.guide,
            request.logprobs,
            plan.skip_special_tokens,
            request.answered,
            request.answered_text,
            Shifts(request.presence_penalty, request.frequency_penalty, request.repetition_penalty, request.logit_bias),
            request.top_k,
            request.min_p,
        )
        if len(request.answered) >= question.max_tokens:  # the end itself is what got lost
            yield Delta(
                "",
                finish_reason="length",
                input_tokens=len(prompt.token_ids),
                output_tokens=len(request.answered),
                model=self.spec.name,
                engine=self.kind,
                quantization=self.quantization,
            )
            return
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inboxes[identity] = inbox
        finished = False
        try:
            self._send(("ask", question))
            while not finished:
                kind, rest = await inbox.get()
                finished = kind != "piece"
                yield plan.read(self._delta(kind, rest, question))
        finally:
            del self._inboxes[identity]
            if not finished and self._connection is not None:
                with suppress(EngineDiedError):
                    self._send(("abort", identity))

    def _delta(self, kind: str, rest: list[Any], question: "Any") -> Delta:
        if kind == "piece":
            self._produced += len(rest[0])
            return Delta(rest[1], tuple(rest[0]), rest[2])
        if kind == "failed":
            raise GenerationError(
                f"transformers could not answer with {self.spec.name!r}: {rest[0]}",
                hint=f"Its log says more: {log_file()}",
            )
        if kind == "lost":
            raise EngineDiedError(
                f"The engine of {self.spec.name!r} ended while it answered.",
                hint=f"Ask again: a new engine starts. The cause is in {log_file()}",
            )
        fields = dict(rest[0])
        token_ids = tuple(fields.pop("token_ids"))
        self._produced += len(token_ids)
        return Delta(
            token_ids=token_ids,
            input_tokens=len(question.token_ids) - len(question.answered),
            model=self.spec.name,
            engine=self.kind,
            quantization=self.quantization,
            **fields,
        )

    def _send(self, message: Any) -> None:
        if self._outbox is None:
            raise EngineDiedError(f"The engine of {self.spec.name!r} is not running.")
        self._outbox.put(message)

    def healthy(self) -> bool:
        process = self._process  # other threads ask, too
        return self._connection is not None and process is not None and process.is_alive()

    def stalled(self) -> str | None:
        return self._pulse.stalled(busy=bool(self._inboxes))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._lost()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running,
            waiting=max(0, len(self._inboxes) - self._running),
            kv_cache_usage=None,
            peak_running=self._peak,
            output_tokens=self._produced,
        )

    def peaks(self) -> tuple[int, float | None] | None:
        seen, self._recent_peak = self._recent_peak, self._running
        return seen, None

    def tokenizer(self) -> Any | None:
        return self._tokenizer

    def process_ids(self) -> list[int]:
        return [] if self._process is None or self._process.pid is None else [self._process.pid]

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._lost()
        await in_thread(lambda: _end(process))


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
        loop.call_soon_threadsafe(what)


def _end(process: SpawnProcess) -> None:
    """The closed pipe ends it, unless it is in the middle of a batch."""
    process.join(1.0)
    if process.is_alive():
        process.terminate()
        process.join(_END_S)
    if process.is_alive():
        process.kill()
        process.join()
