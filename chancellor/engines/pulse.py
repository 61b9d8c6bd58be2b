"""Whether an engine's processes still move."""

import time
from collections.abc import Iterable, Sequence
from typing import Final

import psutil

from chancellor.settings import settings

__all__ = ["Pulse"]

_STOPPED_S: Final = 3.0
"""How long a process may be stopped (SIGSTOP) before it is given up."""
_MOVED_S: Final = 0.05
"""Processor time between two looks from which on a process counts as at work."""
_LONGEST_STEP_S: Final = 600.0
_BLIND_S: Final = 10.0
"""After a longer time between two looks it was this process, or the whole machine, that stood still."""


class Pulse:
    """Looked at every second or so while there are requests. A step may take minutes; then the processor is at work."""

    def __init__(self, processes: Iterable[psutil.Process] = ()) -> None:
        self._processes: Sequence[psutil.Process] = tuple(processes)
        self._used = 0.0
        self._stepped = self._moved = self._looked = time.monotonic()
        self._stopped: float | None = None

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
        used, stopped = self._look()
        if used > self._used + _MOVED_S or self._stepped > self._moved:
            self._moved = max(now, self._stepped)
        self._used = used
        if not stopped:
            self._stopped = None
        elif self._stopped is None:
            self._stopped = now
        elif now - self._stopped > _STOPPED_S:
            return "its process is stopped"
        if now - self._moved > settings().stall_s:
            return f"it has not moved for {now - self._moved:.0f} s"
        if now - self._stepped > _LONGEST_STEP_S:
            return f"it has made no token for {now - self._stepped:.0f} s"
        return None

    def _look(self) -> tuple[float, bool]:
        used, stopped = 0.0, False
        for process in self._processes:
            try:
                times = process.cpu_times()
                used += times.user + times.system
                stopped = stopped or process.status() == psutil.STATUS_STOPPED
            except psutil.Error:
                continue
        return used, stopped
