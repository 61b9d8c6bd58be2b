"""How soon Python's threads take turns while engines run."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chancellor.settings import settings

__all__ = ["quick_switches"]

_lock = threading.Lock()
_hosts = 0
_before = _ours = 0.0


@contextmanager
def quick_switches() -> Iterator[None]:
    """Have the interpreter switch threads at least every CHANCELLOR_SWITCH_INTERVAL_MS meanwhile, if it is not 0.

    The engines' thread lets go of the interpreter with every message that it sends, and a caller that is busy then
    keeps it for Python's switch interval, 5 ms: a new question waits for several of them. Whoever has set a shorter one
    keeps it, and one that is set meanwhile stays.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _hosts, _before, _ours
    seconds = settings().switch_interval_ms / 1e3
    with _lock:
        _hosts += 1
        if _hosts == 1:
            _before = sys.getswitchinterval()
            if 0 < seconds < _before:
                sys.setswitchinterval(seconds)
            _ours = sys.getswitchinterval()  # in whole microseconds


def _leave() -> None:
    global _hosts
    with _lock:
        _hosts -= 1
        if not _hosts and sys.getswitchinterval() == _ours:
            sys.setswitchinterval(_before)
