"""Who is let in to an engine: not more than may wait, and not to one that has failed only lately."""

import time
from collections import deque
from typing import Final

from chancellor.catalog import ModelSpec
from chancellor.engines.breaker import Breaker
from chancellor.errors import EngineBusyError

__all__ = ["Gate"]

_BATCHES: Final = 16
_BATCH: Final = 64


class Gate:
    """A bounded queue and a breaker for each engine, by its key."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._ended: deque[float] = deque(maxlen=_BATCH)

    def breaker(self, key: str) -> Breaker:
        """Return the engine's breaker."""
        return self._breakers.setdefault(key, Breaker())

    def admit(self, spec: ModelSpec, under_way: int) -> None:
        """Let one more request in.

        Raises:
            EngineBusyError: with as many under way, no more may wait.
        """
        most = spec.engine.max_queue or _BATCHES * (spec.engine.max_num_seqs or _BATCH)
        if under_way < most:
            return
        took = self._ended[-1] - self._ended[0] if len(self._ended) > 1 else 0.0
        error = EngineBusyError(f"{under_way} requests are under way with {spec.name!r}, and no more may wait.")
        error.retry_after_s = round(min(max(took, 1.0), 60.0), 1)  # what the last batch of answers took
        raise error

    def ended(self) -> None:
        """Note that a request has ended."""
        self._ended.append(time.monotonic())

    def check(self, key: str, *, elsewhere: bool) -> None:
        """Refuse what has failed lately. One failure alone is no reason, where there is nothing else to do."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.error is None or not (wait := breaker.paused_s()):
            return
        if breaker.failures == 1 and not elsewhere:
            return
        raise type(breaker.error)(
            f"{breaker.error.message} It will be tried again in {wait:.0f} s.", hint=breaker.error.hint
        )
