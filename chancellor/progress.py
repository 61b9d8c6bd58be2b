"""What slow work is doing, told to whoever listens: the command line, Studio's custom stream, a test."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from chancellor.errors import EngineStartError

__all__ = ["Listener", "Progress", "Stage", "endable", "listening", "report"]

Stage = Literal["download", "quantize", "start", "ready"]
logger = logging.getLogger(__name__)


class Progress(TypedDict):
    """One step of the way to a ready engine."""

    stage: Stage
    model: str
    message: str
    completed: int | None
    total: int | None
    substitute: NotRequired[str]
    """The model that answers instead; what it is doing follows under its own name."""


Listener = Callable[[Progress], None]

_lock = threading.Lock()
_listeners: list[Listener] = []
_this_thread = threading.local()


def report(
    stage: Stage,
    model: str,
    message: str,
    completed: int | None = None,
    total: int | None = None,
    substitute: str | None = None,
) -> None:
    """Tell all listeners, on the calling thread. A listener that fails is logged and does not stop the work.

    Raises:
        EngineStartError: nobody wants the work any more: see `endable`.
    """
    ended: Callable[[], bool] | None = getattr(_this_thread, "ended", None)
    if ended is not None and ended():
        raise EngineStartError(f"The start of {model!r} was interrupted.")
    step = Progress(stage=stage, model=model, message=message, completed=completed, total=total)
    if substitute is not None:
        step["substitute"] = substitute
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


@contextmanager
def endable(ended: Callable[[], bool]) -> Iterator[None]:
    """Let this thread's work end with the next step that it reports, once `ended()`."""
    _this_thread.ended = ended
    try:
        yield
    finally:
        del _this_thread.ended
