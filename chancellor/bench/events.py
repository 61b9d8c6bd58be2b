"""What a benchmark tells while it runs."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Event"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a benchmark."""

    kind: Literal["starting", "started", "failed", "segment", "sample", "measured"]
    target: str
    load: str = ""
    block: int = 0
    completed: int = 0
    """Requests of this segment that are done."""
    total: int = 0
    message: str = ""
