"""Keeps what fails from being started over and over."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from chancellor.errors import ChancellorError, OutOfMemoryError

__all__ = ["Breaker"]

_PAUSE: Final = 10.0
"""The first pause, in times of what the failed start took."""
_GROWTH: Final = 3.0
_LONGEST_S: Final = 600.0
_DEATHS: Final = 5
_SHORTAGES: Final = 2
"""Deaths for want of memory: with the same requests there will be more."""
_WINDOW_S: Final = 300.0
_AFTER_DEATHS_S: Final = 60.0


class Breaker:
    """Remembers the failures of one engine. After one that pauses it, the next request may try again.

    A failed start pauses it ten times as long as it took, and each one after that three times longer; so do five
    deaths within five minutes, or two for want of memory, for a minute at first. No pause is longer than ten minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._storms = 0
        self._stormed = -math.inf
        self._until = 0.0
        self._deaths: deque[tuple[float, bool]] = deque()
        self.error: ChancellorError | None = None

    @property
    def failures(self) -> int:
        """Failed starts since the last that succeeded."""
        return self._failures

    def paused_s(self) -> float:
        """Return for how many seconds more it is paused."""
        return max(0.0, self._until - self._clock())

    def failed(
        self, error: ChancellorError, seconds: float, *, shortest_s: float = 0.0, longest_s: float = _LONGEST_S
    ) -> None:
        """Note a start that took `seconds` and failed; the pause is within the two bounds."""
        self.error = copy.copy(error)  # without its traceback, which holds requests
        self._pause(min(max(seconds * _PAUSE * _GROWTH**self._failures, shortest_s), longest_s))
        self._failures += 1

    def started(self) -> None:
        """Note a start that succeeded."""
        self._failures = 0
        self._until = 0.0

    def died(self, error: ChancellorError) -> None:
        """Note that it died while it ran; an OutOfMemoryError says of what."""
        now = self._clock()
        self._deaths.append((now, isinstance(error, OutOfMemoryError)))
        while self._deaths[0][0] < now - _WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) >= _DEATHS or sum(short for _, short in self._deaths) >= _SHORTAGES:
            self._storms = self._storms + 1 if now - self._stormed < 2 * _WINDOW_S else 0
            self._stormed = now
            self._deaths.clear()
            self.error = error
            self._pause(_AFTER_DEATHS_S * _GROWTH**self._storms)

    def _pause(self, seconds: float) -> None:
        self._until = self._clock() + min(seconds, _LONGEST_S)
