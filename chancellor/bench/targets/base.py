"""What can be measured: anything that answers a conversation."""

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chancellor.engines.base import EngineStats

__all__ = ["Ask", "Reply", "Stopwatch", "Target"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a benchmark."""

    messages: list[dict[str, Any]]
    max_tokens: int
    ignore_eos: bool
    stream: bool
    seed: int
    temperature: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """The moments at which pieces of one answer came, by time.perf_counter."""

    pieces: list[float] = field(default_factory=list)

    def piece(self) -> None:
        """Note that a piece has come."""
        self.pieces.append(time.perf_counter())


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer, with what its maker says about it."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    """By the engine's own clock: used where nothing was streamed."""
    queue_s: float | None = None


class Target(ABC):
    """Something to measure, under a name. Started once, used in segments, closed at the end."""

    name: str

    @property
    @abstractmethod
    def detail(self) -> str:
        """What stands behind the name: layer, model, scheme, engine."""

    @abstractmethod
    async def start(self) -> None:
        """Become ready to answer.

        Raises:
            ChancellorError: it cannot.
        """

    @abstractmethod
    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        """Answer, noting each piece of a streamed answer as it comes.

        Raises:
            Exception: any; the request counts as an error.
        """

    async def drive(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run the load; a target that lives on another event loop runs it there."""
        return await work()

    async def tokenizer(self) -> Any | None:
        """Return the model's Hugging Face tokenizer, or None where it is not at hand."""
        return None

    fixed_length: bool = True
    """Whether it can be told to answer to the full length, whatever the model says."""
    started_here: bool = True
    """Whether `start` really started something, so that its time means something."""

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt plus answer, in tokens, as far as it is known before the start."""
        return None

    async def begin(self) -> bool:
        """Get ready for a segment, and empty the prefix cache; return whether it is known to be empty."""
        return False

    async def refresh(self) -> None:  # noqa: B027 - most targets have fresh counters at any time
        """Read counters that have to be asked for."""

    def peaks(self) -> tuple[int, float | None] | None:
        """Return the largest batch and the highest use of the KV cache since the last call; None if nobody counts."""
        return None

    def stats(self) -> EngineStats | None:
        """Return the engine's counters, or None where it has none to show. Must not block."""
        return None

    def processes(self) -> list[int] | None:
        """Return the ids of the processes that work for this target, besides this one; None if it runs elsewhere."""
        return []

    @property
    def facts(self) -> dict[str, float]:
        """What became known at the start, e.g. `weights_gib`."""
        return {}

    @abstractmethod
    async def close(self) -> None:
        """Free everything."""
