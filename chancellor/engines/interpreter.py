"""What is set of Python's own while engines run: how soon threads take turns, and how often garbage is looked for."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from chancellor.settings import settings

__all__ = ["tuned_interpreter"]

T = TypeVar("T")


class _Meanwhile(Generic[T]):
    """A setting of the interpreter that is another one while anybody needs it. One that is set meanwhile stays."""

    def __init__(self, read: Callable[[], T], write: Callable[[T], None], choose: Callable[[T], T]) -> None:
        self._read, self._write, self._choose = read, write, choose
        self._lock = threading.Lock()
        self._users = 0
        self._before = self._ours = read()

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = self._read()
                if (chosen := self._choose(self._before)) != self._before:
                    self._write(chosen)
                self._ours = self._read()  # Python may have rounded it

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._read() == self._ours:
                self._write(self._before)


def _switch_interval(before: float) -> float:
    asked = settings().switch_interval_ms / 1e3
    return min(asked, before) if asked else before


def _threshold(before: tuple[Any, ...]) -> tuple[Any, ...]:
    asked, (first, *older) = settings().gc_threshold, before
    return (asked, *older) if 0 < first < asked else before  # its 0 has the collector off


_switches: Final = _Meanwhile[float](sys.getswitchinterval, sys.setswitchinterval, _switch_interval)
_rounds: Final = _Meanwhile[tuple[Any, ...]](gc.get_threshold, lambda chosen: gc.set_threshold(*chosen), _threshold)


@contextmanager
def tuned_interpreter() -> Iterator[None]:
    """Have Python wait less for its threads, and for its garbage collector, while this is entered.

    The engines' thread lets go of the interpreter with every message that it sends, and a caller that is busy then
    keeps it for Python's switch interval, 5 ms: a new question waits for several of them. So threads take turns after
    CHANCELLOR_SWITCH_INTERVAL_MS.

    Each run of a graph keeps hundreds of objects as long as it goes on. Hundreds of runs at a time set off the
    collector again and again, up to the rounds that go through everything the program has, and none of them finds
    garbage. So it looks when CHANCELLOR_GC_THRESHOLD more objects have come than gone, not 700.

    Each is left alone where it is 0. Whoever has set a shorter interval or a higher threshold keeps it.
    """
    _switches.enter()
    _rounds.enter()
    try:
        yield
    finally:
        _rounds.leave()
        _switches.leave()
