"""Runs that begin together go on one group after the other."""

import asyncio
import collections
import weakref
from contextlib import suppress
from typing import Final

__all__ = ["turnstile"]

_GROUP: Final = 16
_EVERY_S: Final = 0.02
"""So 800 runs a second may begin: more than one interpreter can take through a graph."""


class _Turnstile:
    """Lets a group through, and the next a moment later.

    All runs of a loop advance a step at a time. Of 256 that begin at once the first would come to its engine when the
    last is about to, and the engine, which could have begun long since, would wait for as long.
    """

    def __init__(self) -> None:
        self._left = _GROUP
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    async def enter(self) -> None:
        """Return when it is this run's turn."""
        loop = asyncio.get_running_loop()
        if self._left == _GROUP:
            loop.call_later(_EVERY_S, self._next)
        if self._left:
            self._left -= 1
            return
        self._waiting.append(turn := loop.create_future())
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):  # what waits keeps its loop from being let go
                self._waiting.remove(turn)
            raise

    def _next(self) -> None:
        self._left = _GROUP
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else its run was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._left < _GROUP:
            asyncio.get_running_loop().call_later(_EVERY_S, self._next)


_turnstiles: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turnstile]] = weakref.WeakKeyDictionary()


async def turnstile() -> None:
    """Wait for this run's turn, if many have begun on this loop at once."""
    loop = asyncio.get_running_loop()
    if (own := _turnstiles.get(loop)) is None:
        own = _turnstiles[loop] = _Turnstile()
    await own.enter()
