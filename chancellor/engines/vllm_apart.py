"""vLLM with its front end in a process of its own: the program's interpreter is left to the program.

AsyncLLM turns text into tokens and back, and passes on each step of the engine. Under load that keeps most of an
interpreter busy, and so does what the program does with the tokens (LangGraph, HTTP): in one process they hold each
other up.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.host import in_thread
from chancellor.engines.logs import log_file
from chancellor.engines.pulse import Pulse
from chancellor.engines.vllm_apart_process import FrontEnd
from chancellor.engines.vllm_apart_wire import Frames, Ready, asked, framed, unpacked
from chancellor.engines.vllm_processes import Processes
from chancellor.errors import EngineDiedError

__all__ = ["ApartVLLMEngine"]


class ApartVLLMEngine(Engine):
    """One model in vLLM, of which this process has no part but a line to it."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._processes = Processes()
        self._front = FrontEnd(spec, self._processes, self._work)
        self._line: _Line | None = None
        self._numbers = itertools.count()
        self._inboxes: dict[int, asyncio.Queue[Any]] = {}
        self._stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)
        self._peaks = 0, 0.0
        self._pulse: Pulse | None = None
        self._alive = False
        self._tokenizer: Any = None

    @property
    def _ready(self) -> Ready | None:
        return self._front.ready

    @property
    def quantization(self) -> str | None:
        return self._ready.quantization if self._ready else self.spec.scheme

    async def start(self) -> None:
        started = await in_thread(self._front.start)
        self._line = own = _Line(self, started.frames)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: own, sock=started.line)
        self._alive = True
        self._processes.watch(self._lost)
        self._pulse = Pulse(self._processes.all)
        self.take(started.messages)

    def _work(self) -> Callable[..., None]:
        """Return the main function of the process."""
        from chancellor.engines.vllm_apart_worker import work

        return work

    def interrupt(self) -> None:
        self._front.interrupt(self.kill)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        sent, first = time.perf_counter(), None
        number, inbox = self._open(("ask", asked(request)))
        finished = False
        try:
            while True:
                kind, item = await inbox.get()
                if kind == "lost":
                    finished = True
                    raise self._death("while it answered")
                if kind == "end":
                    finished = True
                    if item is not None:
                        raise item
                    return
                delta = unpacked(item)
                if first is None and request.stream and delta.token_ids:
                    first = time.perf_counter() - sent
                if delta.finish_reason is None:
                    yield delta
                else:  # by the clock of whoever asked
                    own = delta.time_to_first_token_s if first is None else first
                    took = None if delta.inference_time_s is None else time.perf_counter() - sent
                    yield replace(delta, inference_time_s=took, time_to_first_token_s=own)
        finally:
            self._inboxes.pop(number, None)
            if not finished and self._line is not None:
                self._line.send(("abort", number))

    def _open(self, message: tuple[Any, ...]) -> tuple[int, "asyncio.Queue[Any]"]:
        """Send a message that is answered; return its number, and where the answers come."""
        if self._line is None or not self._alive:
            raise EngineDiedError(f"The engine of {self.spec.name!r} is not running.")
        number, inbox = next(self._numbers), asyncio.Queue[Any]()
        self._inboxes[number] = inbox
        self._line.send((message[0], number, *message[1:]))
        return number, inbox

    async def _call(self, method: str) -> None:
        number, inbox = self._open(("call", method))
        try:
            kind, error = await inbox.get()
        finally:
            self._inboxes.pop(number, None)
        if kind == "lost":
            raise self._death(f"before it was done with {method!r}")
        if error is not None:
            raise error

    def take(self, messages: list[Any]) -> None:
        """Take what the process has sent."""
        for kind, *rest in messages:
            if kind == "stats":
                if self._pulse is not None:
                    self._pulse.beat()
                self._stats = stats = rest[0]
                self._peaks = max(self._peaks[0], stats.running), max(self._peaks[1], stats.kv_cache_usage or 0.0)
            elif kind == "died":
                self._lost()
            elif kind in ("delta", "end") and (inbox := self._inboxes.get(rest[0])) is not None:
                inbox.put_nowait((kind, rest[1]))

    def _lost(self) -> None:
        """End all requests: nothing feeds them any more."""
        self._alive = False
        for inbox in self._inboxes.values():
            inbox.put_nowait(("lost", None))

    def _death(self, when: str) -> EngineDiedError:
        return EngineDiedError(
            f"The engine of {self.spec.name!r} ended {when}.",
            hint=f"Ask again: a new engine starts. The cause is in {log_file()}",
        )

    def lost(self) -> None:
        """Note that the line is cut."""
        self._line = None
        self._lost()

    def healthy(self) -> bool:
        return self._alive  # other threads ask, too

    def stalled(self) -> str | None:
        # Before the engine has processes of its own, it may wait: for a download, or for who quantises the same model.
        if self._pulse is None:
            return self._front.pulse.stalled(busy=self._ready is None)
        return self._pulse.stalled(busy=bool(self._inboxes))

    def kill(self) -> None:
        self._lost()
        self._processes.kill()

    def stats(self) -> EngineStats:
        return self._stats

    def peaks(self) -> tuple[int, float | None] | None:
        seen, self._peaks = self._peaks, (0, 0.0)
        return seen

    def tokenizer(self) -> Any | None:
        if self._tokenizer is None and self._ready is not None and self._ready.tokenizer is not None:
            from transformers import AutoTokenizer

            name, revision = self._ready.tokenizer
            self._tokenizer = AutoTokenizer.from_pretrained(
                name, revision=revision or "main", trust_remote_code=self.spec.trust_remote_code
            )
        return self._tokenizer

    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes.all] if self._ready or self._front.begun else []

    def facts(self) -> dict[str, float]:
        return dict(self._ready.facts) if self._ready else {}

    async def forget(self) -> None:
        await self._call("forget")

    @property
    def can_sleep(self) -> bool:
        return self._ready is not None and self._ready.can_sleep

    async def sleep(self) -> None:
        await self._call("sleep")

    async def wake(self) -> None:
        await self._call("wake")

    async def close(self) -> None:
        line, self._line = self._line, None
        if self._ready is None:
            return
        self._processes.unwatch()
        self._lost()
        self._front.cut()
        if line is not None:
            line.close()
        await in_thread(self._front.end)


class _Line(asyncio.Protocol):
    """This end of the line."""

    def __init__(self, engine: ApartVLLMEngine, frames: Frames) -> None:
        self._engine, self._frames = engine, frames
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._engine.lost()

    def data_received(self, data: bytes) -> None:
        for messages in self._frames.feed(data):
            self._engine.take(messages)

    def send(self, message: Any) -> None:
        """Send a message. It waits for nobody: what a stopped process does not take is kept."""
        if self._transport is not None:
            self._transport.write(framed(message))

    def close(self) -> None:
        """Close the line at once."""
        if self._transport is not None:
            self._transport.abort()
