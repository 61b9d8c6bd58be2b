"""The process that vLLM's front end runs in, from its start to its end."""

import math
import multiprocessing
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any, Final, NamedTuple

import psutil

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.logs import LOG_VARIABLE, log_file
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.pulse import Pulse
from chancellor.engines.spawn import OWN_PROCESS, engine_spawning, environment, starting
from chancellor.engines.vllm_apart_wire import Frames, Ready, receive
from chancellor.engines.vllm_processes import SHUTDOWN_S, Processes
from chancellor.errors import ChancellorError, EngineStartError, OutOfMemoryError

__all__ = ["FrontEnd", "Started"]

_END_S: Final = 10.0
"""How long a process may take to end that has closed its line: it may be writing down why."""
_CLEAN_UP_S: Final = 2.0
"""How long a start that is interrupted may take to remove what it has half written."""
_CLOSE_S: Final = SHUTDOWN_S + 5.0
"""The process gives its engine SHUTDOWN_S to end, and has to end itself."""


class Started(NamedTuple):
    """The line to a process that is ready."""

    line: socket.socket
    frames: Frames
    """With what has come of the next message."""
    messages: list[Any]
    """What came after it was ready."""


class FrontEnd:
    """One process, and those that vLLM starts below it."""

    def __init__(self, spec: ModelSpec, processes: Processes, work: Callable[[], Callable[..., None]]) -> None:
        """Start nothing yet.

        Args:
            spec: the entry.
            processes: takes those that are started.
            work: returns the main function of the process.
        """
        self._spec, self._processes, self._work = spec, processes, work
        self._process: SpawnProcess | None = None
        self._cut: Callable[[], object] = _nothing
        """Cuts the line, which ends the process."""
        self._hang_up: Callable[[], object] = _nothing
        """The same, but what it still has to say is read."""
        self._interrupted: float | None = None
        self.begun = False
        """Whether vLLM has processes of its own."""
        self.ready: Ready | None = None
        self.pulse = Pulse(patience=math.inf, step_s=math.inf)  # it may wait for its turn, or for a download
        """Of the start."""

    def start(self) -> Started:
        """Start it; return once it is ready. Blocks for half a minute and more.

        Raises:
            ChancellorError: what kept it from starting.
        """
        try:
            with starting, progress.endable(lambda: self._interrupted is not None):
                return self._start()
        except ChancellorError:
            raise
        except Exception as error:
            raise EngineStartError(
                f"The engine of {self._spec.name!r} did not start: {error}", hint=f"Its log may say more: {log_file()}"
            ) from error

    def _start(self) -> Started:
        progress.report("start", self._spec.name, "starting a process for vLLM")
        postmortem, frames = PostMortem(), Frames()
        line, theirs = socket.socketpair()
        with self._processes.starting(), environment({LOG_VARIABLE: str(log_file())}), engine_spawning():
            try:
                with theirs:
                    self._process = process = multiprocessing.get_context("spawn").Process(
                        target=self._work(),
                        args=(theirs, self._spec, log_file()),
                        name=f"{OWN_PROCESS}-{self._spec.name}",
                    )
                    process.start()
                # An interpreter that ends waits for its processes; this is done before.
                self._cut = Finalize(None, _shut, args=(line, socket.SHUT_RDWR), exitpriority=0)
                self._hang_up = partial(_shut, line, socket.SHUT_WR)
                self.pulse = Pulse([psutil.Process(process.pid)], patience=math.inf, step_s=math.inf)
                messages = self.until_ready(line, frames, process.sentinel)
            except BaseException as error:
                died = isinstance(error, EOFError) and self._interrupted is None
                code = self._end(_END_S if died else 0.0)
                line.close()
                if isinstance(error, EOFError):
                    raise self.stillborn(code, postmortem) from None
                raise
        line.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return Started(line, frames, messages)

    def until_ready(self, line: socket.socket, frames: Frames, sentinel: int) -> list[Any]:
        """Pass on what a start reports; return what came after it was ready.

        Raises:
            EOFError: the process has ended.
            ChancellorError: what kept it from starting.
        """
        while True:
            # A child that the program has forked meanwhile may hold the line's other end as well.
            if line not in connection.wait([line, sentinel]):
                raise EOFError
            messages = list(chain.from_iterable(receive(line, frames)))
            for place, (kind, *rest) in enumerate(messages):
                if kind == "progress":
                    progress.report(**rest[0])
                elif kind == "begun":
                    self.begun = True
                elif kind == "failed":
                    raise rest[0]
                elif kind == "ready":
                    self.ready = rest[0]
                    return messages[place + 1 :]

    def stillborn(self, code: int | None, postmortem: PostMortem) -> EngineStartError:
        """Return what is to be said of a process that ended before it was ready.

        Args:
            code: its exit code, None if it had to be killed.
            postmortem: made before its start.
        """
        if self._interrupted is not None:
            return EngineStartError(f"The start of {self._spec.name!r} was interrupted.")
        if (shortage := postmortem.shortage()) is not None:
            return OutOfMemoryError(f"There was not enough memory to start {self._spec.name!r}: {shortage}")
        how = "had to be killed" if code is None else f"ended with exit code {code}"
        return EngineStartError(
            f"vLLM's process {how} while it loaded {self._spec.name!r}.",
            hint=f"The cause is in its log: {log_file()}",
        )

    def interrupt(self, kill: Callable[[], None]) -> None:
        """Have a start end by itself; where it takes too long for that, or is over, kill it."""
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._hang_up()  # it cleans up
        elif self.ready is not None or now - self._interrupted > _CLEAN_UP_S:
            kill()

    def cut(self) -> None:
        """Tell it to end."""
        self._cut()

    def end(self) -> None:
        """See to it that it ends, and all below it. Blocks for some seconds."""
        ended = self._end(_CLOSE_S) == 0
        self._processes.end(SHUTDOWN_S if ended else 0.0)  # else those below it were not asked

    def _end(self, patience_s: float) -> int | None:
        """Return the exit code, None if it had to be killed.

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


def _shut(line: socket.socket, how: int) -> None:
    """End the line for all who hold it: a child that the program has forked does."""
    with suppress(OSError):
        line.shutdown(how)


def _nothing() -> None:
    """Stand in for what is not there yet."""
