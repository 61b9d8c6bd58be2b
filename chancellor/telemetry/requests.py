"""One record of each request, at its end, for whoever counts or traces. It holds no text of prompts or answers."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:  # the engines import this module
    from chancellor.catalog import ModelSpec
    from chancellor.engines.base import Delta, Engine, GenerationRequest

__all__ = ["CANCELLED", "Observation", "RequestRecord", "Sink", "recording", "subscribe", "unsubscribe"]

CANCELLED: Final = "cancelled"
"""The `error` of a request that was cut short by its caller, or by the pool's close."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request asked for and what it took. None stands for what the engine did not tell."""

    model: str
    """Name in the catalog."""
    engine: str | None
    """Kind of the engine; None where the request ended before it had one, as when a start fails."""
    quantization: str | None
    """Scheme of the weights."""
    started_at: float
    """When the engine took the request, in seconds since the epoch; without an engine, when it was made."""
    ended_at: float
    duration_s: float | None
    """Seconds with the engine; its start is no part of them. None without an engine."""
    time_to_first_token_s: float | None
    queue_time_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    finish_reason: str | None
    """ "stop" or "length"; None where there is an error."""
    error: str | None
    """Class of what was raised, or "cancelled"; None where the request was answered."""
    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None
    stop: tuple[str, ...]
    streamed: bool

    @property
    def answered(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason is not None

    @property
    def outcome(self) -> str:
        """The finish reason or the error."""
        return self.finish_reason or self.error or "unknown"

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean seconds from token to token after the first; None with fewer than two."""
        if self.duration_s is None or self.time_to_first_token_s is None or self.output_tokens is None:
            return None
        later, rest = self.output_tokens - 1, self.duration_s - self.time_to_first_token_s
        return rest / later if later > 0 and rest >= 0 else None


Sink = Callable[[RequestRecord], None]
"""Takes a record on the engines' thread, in the contextvars of the request's caller: it has to be quick."""

_lock = threading.Lock()
_sinks: tuple[Sink, ...] = ()


def subscribe(sink: Sink) -> None:
    """Call `sink` with the record of each request that ends from now on. One that fails is logged, and that is all."""
    global _sinks
    with _lock:
        _sinks = (*_sinks, sink)


def unsubscribe(sink: Sink) -> None:
    """Undo one `subscribe`; without one, nothing happens."""
    global _sinks
    with _lock:
        remaining = list(_sinks)
        if sink in remaining:
            remaining.remove(sink)
        _sinks = tuple(remaining)


@contextmanager
def recording(sink: Sink) -> Iterator[None]:
    """Call `sink` with the record of each request that ends within the block, whoever made it."""
    subscribe(sink)
    try:
        yield
    finally:
        unsubscribe(sink)


class Observation:
    """Follows one request. Each delta is put into `last`; leaving the block makes the record, if anyone wants it."""

    __slots__ = ("_began", "_engine", "_request", "_spec", "last")

    def __init__(self, spec: "ModelSpec", request: "GenerationRequest") -> None:
        self._spec, self._request = spec, request
        self._engine: Engine | None = None
        self._began = time.perf_counter()
        self.last: Delta | None = None

    def handed_to(self, engine: "Engine") -> None:
        """Note that the engine is ready, and takes the request now."""
        self._engine = engine
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not _sinks:
            return
        record = self._record(kind)
        for sink in _sinks:
            try:
                sink(record)
            except Exception:
                logger.exception("A sink of request records failed")

    def _record(self, kind: type[BaseException] | None) -> RequestRecord:
        elapsed, now = time.perf_counter() - self._began, time.time()
        request, engine = self._request, self._engine
        # Only the last delta has figures. Whoever stops listening after it has the whole answer.
        last = self.last if self.last is not None and self.last.finish_reason is not None else None
        took = last.inference_time_s if last is not None and last.inference_time_s is not None else elapsed
        return RequestRecord(
            model=self._spec.name,
            engine=engine.kind if engine is not None else None,
            quantization=engine.quantization if engine is not None else self._spec.scheme,
            started_at=now - elapsed,
            ended_at=now,
            duration_s=took if engine is not None else None,
            time_to_first_token_s=last.time_to_first_token_s if last else None,
            queue_time_s=last.queue_time_s if last else None,
            input_tokens=last.input_tokens if last else None,
            output_tokens=last.output_tokens if last else None,
            cached_tokens=last.cached_tokens if last else None,
            finish_reason=last.finish_reason if last else None,
            error=_name(kind) if last is None and kind is not None else None,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
            streamed=request.stream,
        )


def _name(kind: type[BaseException]) -> str:
    return CANCELLED if issubclass(kind, (asyncio.CancelledError, GeneratorExit)) else kind.__name__
