"""What passes from the engines' thread to a caller's loop, and when that loop is woken for it.

Both threads share one interpreter: what the caller does with each piece of an answer, the engines' thread waits for.
"""

import asyncio
import collections
import time
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

__all__ = ["End", "Inbox", "taken_from"]

_EDGES: Final = 4
_EDGE_TURNS: Final = 24
"""How many that have their answer are woken together, and how often the loop comes round before the next: about as
often as LangGraph takes from an answer to the end of its run. All at once, the first of them would ask its next
question only when the last is about to, and the engine would wait."""
_MIDDLES: Final = 8
_MIDDLE_TURNS: Final = 8
"""The same for a piece of an answer."""
_PATIENCE_S: Final = 0.002
"""How long pieces wait before they look again whether answers that are done have gone through."""
_BUSY_S: Final = 0.0005
_REST: Final = 1.0
_LONGEST_REST_S: Final = 0.25
_SLOW_S: Final = 0.05
_SLOW_SHARE: Final = 8
"""On a loop that takes longer than that, for whatever reason, an eighth of those that wait are woken at a time."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class End:
    """Comes after a source's items, with what it raised."""

    error: BaseException | None = None


def taken_from(items: collections.deque[Any]) -> list[Any]:
    """Take what is there up to the end; after that, nothing, or raise what went wrong."""
    taken = []
    while items and not isinstance(items[0], End):
        taken.append(items.popleft())
    if not taken and items[0].error is not None:
        raise items[0].error
    return taken


class _Bell(ABC):
    """Wakes a loop once for all that came meanwhile, to however many inboxes: a wake-up is a system call."""

    longest_s = _SLOW_S
    """How long those that were woken have the loop to themselves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._rung = False
        self.woke_at = 0.0
        self.slow = False
        """Whether the loop took long for those that were woken last, or did not get to any."""

    def ring(self, waiter: "asyncio.Future[None]") -> None:
        """Wake who waits, from the other thread."""
        self._waiting.append(waiter)
        if not self._rung:
            self._rung = True
            self.loop.call_soon_threadsafe(self._wake)

    def some(self, usual: int) -> int:
        """Return how many to wake: more of many that wait for a slow loop, each turn of which takes long anyway."""
        return max(usual, len(self._waiting) // _SLOW_SHARE) if self.slow else usual

    def wake(self, most: int) -> int:
        """Wake who waits; return how many."""
        self.woke_at, self.slow = time.perf_counter(), False
        woken = 0
        while self._waiting and woken != most:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                woken += 1
        return woken

    def _settle(self, turns: int) -> None:
        """Let the loop deal with those that were woken before it gets more."""
        took = time.perf_counter() - self.woke_at
        self.slow = took > _SLOW_S
        if turns and took < self.longest_s:
            self.loop.call_soon(self._settle, turns - 1)
        else:
            self._settled()

    def look(self) -> None:
        """Wake who has come to wait meanwhile; without any, from now on a ring does."""
        self._rung = False  # before looking: what is appended from now on rings again
        if self._waiting:
            self._rung = True
            self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """Wake some, and have them settle."""

    @abstractmethod
    def _settled(self) -> None:
        """See to it that `look` is called."""


class _Edges(_Bell):
    """For beginnings and ends of answers: some at a time, and the next when the loop has come round a few times."""

    longest_s = 0.01  # a loop that has something else to do comes round less often

    @property
    def busy(self) -> bool:
        """Whether some of them are still on their way."""
        return self._rung

    def _wake(self) -> None:
        self._settle(_EDGE_TURNS if self.wake(self.some(_EDGES)) else 0)

    def _settled(self) -> None:
        self.look()


class _Middles(_Bell):
    """For what is between: some at a time, after the edges, and a loop that is busy gets the next after a rest.

    What an engine could do meanwhile waits for beginnings and ends, and nothing waits for a piece but its reader. Those
    that wait come joined, and what each piece costs, several times what a token costs the engines' thread, is paid less
    often.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, edges: _Edges) -> None:
        super().__init__(loop)
        self._edges = edges

    def _wake(self) -> None:
        if self._edges.busy:
            if time.perf_counter() - self.woke_at < _LONGEST_REST_S:
                self.loop.call_later(_PATIENCE_S, self._wake)
                return
            self.slow = True
        self._settle(_MIDDLE_TURNS if self.wake(self.some(_MIDDLES)) > 1 else 0)  # one alone has all to itself

    def _settled(self) -> None:
        busy = time.perf_counter() - self.woke_at
        if busy > _BUSY_S:
            self.loop.call_later(min(busy * _REST, _LONGEST_REST_S), self.look)
        else:
            self.look()


class _Bells:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.edges = _Edges(loop)
        self.middles = _Middles(loop, self.edges)


_bells: Final[weakref.WeakValueDictionary[asyncio.AbstractEventLoop, _Bells]] = weakref.WeakValueDictionary()


class Inbox(Generic[T]):
    """A queue into another loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make it; on the loop's own thread."""
        self._loop = loop
        self._bells = _bells.get(loop) or _bells.setdefault(loop, _Bells(loop))  # only this thread looks for it
        self._begun = False
        self._items: collections.deque[T | End] = collections.deque()
        # Each thread writes one of these and only reads the other: neither takes back what the other has just written.
        self._waiter: asyncio.Future[None] | None = None
        self._called: asyncio.Future[None] | None = None

    def put(self, item: T | End) -> None:
        """Append an item, from the other thread.

        Raises:
            asyncio.CancelledError: the loop was closed: nobody is waiting any more.
        """
        self._items.append(item)
        try:
            if self._loop.is_closed():
                raise RuntimeError
            edge = not self._begun or isinstance(item, End)
            # Who waits for the middle is called once more for the end, which comes by the bell that does not rest.
            if (waiter := self._waiter) is not None and (waiter is not self._called or isinstance(item, End)):
                self._begun, self._called = True, waiter
                (self._bells.edges if edge else self._bells.middles).ring(waiter)
        except RuntimeError as error:
            raise asyncio.CancelledError from error

    async def take(self) -> list[T]:
        """Return all that has come; nothing at the end."""
        while not self._items:
            self._waiter = waiter = self._loop.create_future()
            if not self._items:  # else it came before the other thread could see who waits
                await waiter
        return taken_from(self._items)
