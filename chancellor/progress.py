"""What slow work is doing, told to whoever listens: the command line, Studio's custom stream, a test."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from typing_extensions import TypedDict

__all__ = ["Listener", "Progress", "Stage", "listening", "report"]

Stage = Literal["download", "quantize", "start", "ready"]
logger = logging.getLogger(__name__)


class Progress(TypedDict):
    """One step of the way to a ready engine."""

    stage: Stage
    model: str
    message: str
    completed: int | None
    total: int | None


Listener = Callable[[Progress], None]

_lock = threading.Lock()
_listeners: list[Listener] = []


def report(stage: Stage, model: str, message: str, completed: int | None = None, total: int | None = None) -> None:
    """Tell all listeners, on the calling thread. A listener that fails is logged and does not stop the work."""
    step = Progress(stage=stage, model=model, message=message, completed=completed, total=total)
    with _lock:
        listeners = tuple(_listeners)
    for listener in listeners:
        try:
            listener(step)
        except Exception:
            logger.exception("A progress listener failed")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with each step, from whichever thread does the work."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
