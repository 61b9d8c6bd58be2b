"""The Trinity score: five pillars of a model's quality, and their weighted sum."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MINIMUM_SCORE", "WEIGHTS", "Balance", "Pillars", "Score"]

Score = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
"""A score from 0 to 100."""

MINIMUM_SCORE: Final = 95.0
"""A model below this score is rejected, unless the catalog sets another minimum."""

WEIGHTS: Final = {"truth": 0.35, "goodness": 0.35, "beauty": 0.20, "serenity": 0.08, "eternity": 0.02}


class Balance(StrEnum):
    """How far apart the pillars stand: their maximum minus their minimum."""

    BALANCED = "balanced"
    """Less than 30 points apart."""
    WARNING = "warning"
    """From 30 to less than 50 points apart."""
    IMBALANCED = "imbalanced"
    """50 points apart or more."""


class Pillars(BaseModel):
    """The five pillars, each from 0 to 100."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    truth: Score
    """Answers kept right against the unquantised reference."""
    goodness: Score
    """Speed and memory against the unquantised reference, within the memory cap."""
    beauty: Score
    """Output that keeps the format that was asked for."""
    serenity: Score
    """Success rate, and a steady tail of the latency."""
    eternity: Score
    """Pinned revision, safetensors, licence, checksums."""

    @property
    def score(self) -> float:
        """The weighted sum of the pillars, from 0 to 100."""
        # Rounded, so that five pillars at the minimum are not below it by one bit.
        return round(sum(weight * float(getattr(self, pillar)) for pillar, weight in WEIGHTS.items()), 6)

    @property
    def balance(self) -> Balance:
        """Whether the pillars stand close together."""
        values = [float(getattr(self, pillar)) for pillar in WEIGHTS]
        spread = max(values) - min(values)
        if spread < 30:
            return Balance.BALANCED
        return Balance.WARNING if spread < 50 else Balance.IMBALANCED
