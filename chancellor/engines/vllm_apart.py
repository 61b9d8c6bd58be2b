"""vLLM with its front end in a process of its own: the program's interpreter is left to the program.

AsyncLLM turns text into tokens and back, and passes on each step of the engine. Under load that keeps most of an
interpreter busy, and so does what the program does with the tokens (LangGraph, HTTP): in one process they hold each
other up.
"""

import asyncio
import itertools
import math
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any, ClassVar, Final, cast

import psutil

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.host import in_thread
from chancellor.engines.logs import LOG_VARIABLE, log_file, shortage_in
from chancellor.engines.pulse import Pulse
from chancellor.engines.spawn import OWN_PROCESS, engine_spawning, environment, starting
from chancellor.engines.vllm_apart_wire import Frames, Ready, asked, framed, receive, unpacked
from chancellor.engines.vllm_processes import SHUTDOWN_S, Processes
from chancellor.errors import ChancellorError, EngineDiedError, EngineStartError, OutOfMemoryError

__all__ = ["ApartVLLMEngine"]

_END_S: Final = 10.0
"""How long a process may take to end that has closed its line: it may be writing down why."""
_CLEAN_UP_S: Final = 2.0
"""How long a start that is interrupted may take to remove what it has half written."""
_CLOSE_S: Final = SHUTDOWN_S + 5.0
"""The process gives its engine SHUTDOWN_S to end, and has to end itself."""


class ApartVLLMEngine(Engine):
    """One model in vLLM, of which this process has no part but a line to it."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._processes = Processes()
        self._process: SpawnProcess | None = None
        self._ready: Ready | None = None
        self._line: _Line | None = None
        self._cut: Callable[[], object] = _nothing
        """Cuts the line, which ends the process."""
        self._hang_up: Callable[[], object] = _nothing
        """The same, but what it still has to say is read."""
        self._numbers = itertools.count()
        self._inboxes: dict[int, asyncio.Queue[Any]] = {}
        self._stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)
        self._peaks = 0, 0.0
        self._pulse = Pulse(patience=math.inf, step_s=math.inf)  # it may wait for its turn
        self._begun = self._alive = False
        self._interrupted: float | None = None
        self._tokenizer: Any = None

    @property
    def quantization(self) -> str | None:
        return self._ready.quantization if self._ready else self.spec.scheme

    async def start(self) -> None:
        line, frames, messages = await in_thread(self._load)
        self._line = own = _Line(self, frames)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: own, sock=line)
        self._alive = True
        self._processes.watch(self._lost)
        self._pulse = Pulse(self._processes.all)
        self.take(messages)

    def _load(self) -> tuple[socket.socket, Frames, list[Any]]:
        """Start the process; return the line to it once it is ready. Blocks for half a minute and more."""
        try:
            with starting, progress.endable(lambda: self._interrupted is not None):
                return self._spawn()
        except ChancellorError:
            raise
        except Exception as error:
            raise EngineStartError(
                f"The engine of {self.spec.name!r} did not start: {error}", hint=f"Its log may say more: {log_file()}"
            ) from error

    def _spawn(self) -> tuple[socket.socket, Frames, list[Any]]:
        progress.report("start", self.spec.name, "starting a process for vLLM")
        logged, frames = log_file().stat().st_size, Frames()
        line, theirs = socket.socketpair()
        with self._processes.starting(), environment({LOG_VARIABLE: str(log_file())}), engine_spawning():
            try:
                with theirs:
                    self._process = process = multiprocessing.get_context("spawn").Process(
                        target=self._work(),
                        args=(theirs, self.spec, log_file()),
                        name=f"{OWN_PROCESS}-{self.spec.name}",
                    )
                    process.start()
                # An interpreter that ends waits for its processes; this is done before.
                self._cut = Finalize(None, _shut, args=(line, socket.SHUT_RDWR), exitpriority=0)
                self._hang_up = partial(_shut, line, socket.SHUT_WR)
                self._pulse = Pulse([psutil.Process(process.pid)], patience=math.inf, step_s=math.inf)
                messages = self._until_ready(line, frames, process)
            except BaseException as error:
                died = isinstance(error, EOFError) and self._interrupted is None
                code = self._end_process(_END_S if died else 0.0)
                line.close()
                if isinstance(error, EOFError):
                    raise self._stillborn(code, logged) from None
                raise
        line.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return line, frames, messages

    def _work(self) -> Callable[..., None]:
        """Return the main function of the process."""
        from chancellor.engines.vllm_apart_worker import work

        return work

    def _until_ready(self, line: socket.socket, frames: Frames, process: SpawnProcess) -> list[Any]:
        """Pass on what a start reports; return what came after it was ready.

        Raises:
            EOFError: the process has ended.
            ChancellorError: what kept it from starting.
        """
        while True:
            # A child that the program has forked meanwhile may hold the line's other end as well.
            if line not in connection.wait([line, process.sentinel]):
                raise EOFError
            messages = list(chain.from_iterable(receive(line, frames)))
            for place, (kind, *rest) in enumerate(messages):
                if kind == "progress":
                    progress.report(**rest[0])
                elif kind == "begun":
                    self._begun = True
                elif kind == "failed":
                    raise rest[0]
                elif kind == "ready":
                    self._ready = rest[0]
                    return messages[place + 1 :]

    def _stillborn(self, code: int | None, logged: int) -> EngineStartError:
        if self._interrupted is not None:
            return EngineStartError(f"The start of {self.spec.name!r} was interrupted.")
        if (shortage := shortage_in(log_file(), logged, f"exit code {code}")) is not None:
            return OutOfMemoryError(f"There was not enough memory to start {self.spec.name!r}: {shortage}")
        how = "had to be killed" if code is None else f"ended with exit code {code}"
        return EngineStartError(
            f"vLLM's process {how} while it loaded {self.spec.name!r}.",
            hint=f"The cause is in its log: {log_file()}",
        )

    def _end_process(self, patience_s: float) -> int | None:
        """Cut the line, and see to it that the process ends; return its exit code, None if it had to be killed.

        By multiprocessing, which keeps file descriptors for a process that somebody else has waited for.
        """
        self._cut()
        process, self._process = self._process, None
        if process is None or process.pid is None:  # it was not even started
            return None
        process.join(patience_s if self._interrupted is None else max(patience_s, _CLEAN_UP_S))
        if killed := process.is_alive():
            process.kill()
            process.join(SHUTDOWN_S)
        code = process.exitcode
        if code is not None:
            process.close()
        return None if killed else code

    def interrupt(self) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._hang_up()  # it cleans up
        elif self._ready is not None or now - self._interrupted > _CLEAN_UP_S:
            self.kill()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        sent, first = time.perf_counter(), None
        number, inbox = self._open(("ask", asked(request)))
        finished = False
        try:
            while True:
                kind, item = await inbox.get()
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
            _, error = await inbox.get()
        finally:
            self._inboxes.pop(number, None)
        if error is not None:
            raise error

    def take(self, messages: list[Any]) -> None:
        """Take what the process has sent."""
        for kind, *rest in messages:
            if kind == "stats":
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
            error = EngineDiedError(
                f"The engine of {self.spec.name!r} ended while it answered.",
                hint=f"Ask again: a new engine starts. The cause is in {log_file()}",
            )
            inbox.put_nowait(("end", error))

    def lost(self) -> None:
        """Note that the line is cut."""
        self._line = None
        self._lost()

    def healthy(self) -> bool:
        return self._alive  # other threads ask, too

    def stalled(self) -> str | None:
        # Before the engine has processes of its own, it may wait: for a download, or for who quantises the same model.
        return self._pulse.stalled(busy=bool(self._inboxes) or self._ready is None)

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
        return [process.pid for process in self._processes.all] if self._ready or self._begun else []

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
        self._cut()
        if line is not None:
            line.close()
        await in_thread(self._end)

    def _end(self) -> None:
        ended = self._end_process(_CLOSE_S) == 0
        self._processes.end(SHUTDOWN_S if ended else 0.0)  # else those below it were not asked


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


def _shut(line: socket.socket, how: int) -> None:
    """End the line for all who hold it: a child that the program has forked does."""
    with suppress(OSError):
        line.shutdown(how)


def _nothing() -> None:
    """Stand in for what is not there yet."""
