"""Whether an engine's processes still move."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Final, Self

import psutil

from chancellor.settings import settings

__all__ = ["Pulse"]

_STOPPED_S: Final = 3.0
"""How long a process may be stopped (SIGSTOP) before it is given up."""
_MOVED_S: Final = 0.05
"""Processor time between two looks from which on a process counts as at work."""
_LONGEST_STEP_S: Final = 600.0
_MOVED_BYTES: Final = 2**20
_START_PATIENCE: Final = 10.0
_BLIND_S: Final = 10.0
"""After a longer time between two looks it was this process, or the whole machine, that stood still."""


class Pulse:
    """Looked at every second or so while there are requests. A step may take minutes; then the processor is at work."""

    def __init__(
        self, processes: Iterable[psutil.Process] = (), *, patience: float = 1.0, step_s: float = _LONGEST_STEP_S
    ) -> None:
        """Feel the pulse of some processes.

        Args:
            processes: of the engine.
            patience: how many times CHANCELLOR_STALL_S they may do nothing.
            step_s: how long they may go on without a `beat`.
        """
        self._processes: Sequence[psutil.Process] = tuple(processes)
        self._patience, self._step_s = patience, step_s
        self._used = 0.0
        self._moved_bytes = 0
        self._stepped = self._moved = self._looked = time.monotonic()
        self._stopped: float | None = None

    @classmethod
    def of_start(cls) -> Self:
        """Return that of an engine that starts: loading from a slow disk is no hang, and compiling makes no step."""
        return cls(patience=_START_PATIENCE, step_s=math.inf)

    def follow(self, processes: Iterable[psutil.Process]) -> None:
        """Look at these from now on."""
        self._processes = tuple(processes)

    def beat(self) -> None:
        """Note that the engine has made a step."""
        self._stepped = time.monotonic()

    def stalled(self, *, busy: bool) -> str | None:
        """Return why nothing more is to be expected of the processes, or None.

        Args:
            busy: whether there is anything to do for them.
        """
        now = time.monotonic()
        blind, self._looked = now - self._looked > _BLIND_S, now
        if blind or not busy:
            self._stepped = self._moved = now
            self._stopped = None
            return None
        used, moved_bytes, stopped = self._look()
        moved = used > self._used + _MOVED_S or moved_bytes > self._moved_bytes + _MOVED_BYTES
        if moved or self._stepped > self._moved:
            self._moved = max(now, self._stepped)
        self._used, self._moved_bytes = used, moved_bytes
        if not stopped:
            self._stopped = None
        elif self._stopped is None:
            self._stopped = now
        elif now - self._stopped > _STOPPED_S:
            return "its process is stopped"
        if now - self._moved > settings().stall_s * self._patience:
            return f"it has not moved for {now - self._moved:.0f} s"
        if now - self._stepped > self._step_s:
            return f"it has made no token for {now - self._stepped:.0f} s"
        return None

    def _look(self) -> tuple[float, int, bool]:
        """Return the processor time that was used, bytes that were read and written, and whether one is stopped."""
        used, moved_bytes, stopped = 0.0, 0, False
        for process in self._processes:
            try:
                times = process.cpu_times()
                # With that of children that have ended, such as a compiler's.
                used += times.user + times.system + times.children_user + times.children_system
                stopped = stopped or process.status() == psutil.STATUS_STOPPED
                counters = process.io_counters()
                moved_bytes += counters.read_bytes + counters.write_bytes + counters.read_chars + counters.write_chars
            except (psutil.Error, AttributeError):  # a system that does not count them
                continue
        return used, moved_bytes, stopped
