"""The other end of an engine in a process of its own: vLLM as it also runs in the user's program."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, cast

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, EngineStats
from chancellor.engines.interpreter import tuned_interpreter
from chancellor.engines.logs import write_to
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_apart_wire import Frames, Ready, framed, packed, portable, request_of
from chancellor.errors import ChancellorError, EngineDiedError, EngineStartError, InvalidInputError

__all__ = ["Worker", "serve", "work"]

logger = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.2
_FEEL_EVERY_S: Final = 1.0
"""How often the engine's pulse is felt: as often as a pool does it where the engine is in its own process."""
_END_S: Final = 5.0
"""How long a start that was interrupted may take to clean up."""


def work(line: socket.socket, spec: ModelSpec, log: Path) -> None:
    """Serve an engine until the other end of the line is closed. Runs as the main function of a process.

    Args:
        line: a connected socket.
        spec: the entry.
        log: where the parent's engines write what they have to say.
    """
    write_to(log)
    with tuned_interpreter(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(line, spec))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, where it is installed: vLLM's own server takes it as well."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Engine(VLLMEngine):
    """Tells what it does after each of its steps."""

    def __init__(self, spec: ModelSpec, report: Callable[[EngineStats], None]) -> None:
        super().__init__(spec)
        self._report = report

    def _record(self, stats: EngineStats) -> None:
        super()._record(stats)
        self._report(stats)


Make = Callable[[ModelSpec, Callable[[EngineStats], None]], VLLMEngine]
"""Makes an engine that reports what it does after each of its steps."""


async def serve(line: socket.socket, spec: ModelSpec, make: Make = _Engine) -> None:
    """Serve the engine that `make` makes, as `work` does."""
    loop, worker = asyncio.get_running_loop(), Worker(spec, make)
    line.setblocking(False)  # noqa: FBT003 - the standard library's signature
    await loop.connect_accepted_socket(lambda: worker, sock=line)
    with progress.listening(lambda step: _tell(loop, worker, step)):
        await worker.run()


def _tell(loop: asyncio.AbstractEventLoop, worker: "Worker", step: progress.Progress) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(worker.put, ("progress", step))


class Worker(asyncio.Protocol):
    """Does what it is asked for. What comes up within one turn of the loop goes out as one message."""

    def __init__(self, spec: ModelSpec, make: Make = _Engine) -> None:
        self._name = spec.name
        self._engine = make(spec, self._note)
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[Any] = []
        self._stats: EngineStats | None = None
        self._flushing = False
        self._gone = asyncio.Event()
        self._felt = 0.0
        self._hung: str | None = None

    async def run(self) -> None:
        """Start the engine, answer until nobody is there any more, and close it."""
        start = asyncio.create_task(self._start())
        gone = asyncio.create_task(self._gone.wait())
        begun = False
        try:
            while not start.done() and not gone.done():
                await asyncio.wait({start, gone}, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if not begun and self._engine.process_ids():
                    begun = True
                    self.put(("begun",))
                if self._hangs():
                    self._engine.interrupt()  # again with each look, until it has failed
            if start.done() and await start:
                while not self._gone.is_set() and self._engine.healthy():
                    await asyncio.wait({gone}, timeout=_LOOK_EVERY_S)
                    if self._hangs():
                        self._engine.kill()
                self._look()
                await gone
        finally:
            until = time.monotonic() + _END_S
            while not start.done() and time.monotonic() < until:  # what it has half written goes when it fails
                self._engine.interrupt()
                await asyncio.wait({start}, timeout=_LOOK_EVERY_S)
            await self._engine.close()

    async def _start(self) -> bool:
        try:
            await self._engine.start()
        except (Exception, SystemExit) as error:  # a checkpoint's own code may end the program
            logger.exception("The engine did not start")
            self.put(("failed", self._start_error(error)))
            self._flush()
            return False
        engine = self._engine
        tokenizer = engine.tokenizer_source()
        self.put(("ready", Ready(engine.quantization, engine.facts(), engine.can_sleep, tokenizer)))
        return True

    def _start_error(self, error: BaseException) -> ChancellorError:
        if self._hung is not None:
            return EngineStartError(f"The start of {self._name!r} hung, and was ended: {self._hung}.")
        if isinstance(error, ChancellorError):
            return portable(error)
        return EngineStartError(f"The engine of {self._name!r} did not start: {type(error).__name__}: {error}")

    def _hangs(self) -> bool:
        """Whether nothing more is to be expected of vLLM's processes. Who asked cannot tell them from this one."""
        if (now := time.monotonic()) >= self._felt + _FEEL_EVERY_S:
            self._felt = now
            if (reason := self._engine.stalled()) is not None:
                logger.warning("The engine of %r is ended: %s", self._name, reason)
                self._hung = self._hung or reason
        return self._hung is not None

    def _look(self) -> None:
        if not self._engine.healthy():
            self.put(("died",))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._gone.set()
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        for kind, number, *rest in self._frames.feed(data):
            if kind == "ask":
                self._begin(number, self._answer(number, *rest))
            elif kind == "call":
                self._begin(number, self._call(number, getattr(self._engine, rest[0])))
            elif (task := self._tasks.get(number)) is not None:
                task.cancel()

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[number] = task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _answer(self, number: int, asked: str) -> None:
        error = None
        try:
            answer = cast("AsyncGenerator[Delta, None]", self._engine.generate(request_of(asked)))
            async with aclosing(answer) as deltas:
                async for delta in deltas:
                    self.put(("delta", number, packed(delta)))
        except Exception as caught:
            if not isinstance(caught, InvalidInputError | EngineDiedError):
                logger.exception("A request failed")
            error = portable(caught)
            self._look()  # first of all: whoever gets the error asks whether the engine lives
        self.put(("end", number, error))

    async def _call(self, number: int, method: Callable[[], Awaitable[None]]) -> None:
        try:
            await method()
        except Exception as caught:
            logger.exception("A call failed")
            self.put(("end", number, portable(caught)))
        else:
            self.put(("end", number, None))

    def _note(self, stats: EngineStats) -> None:
        self._stats = stats
        self._flush_soon()

    def put(self, message: Any) -> None:
        """Send a message with what else comes up now."""
        self._outgoing.append(message)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        messages, self._outgoing = self._outgoing, []
        if self._stats is not None:
            messages.append(("stats", self._stats))
            self._stats = None
        if self._transport is not None and messages:
            self._transport.write(framed(messages))
