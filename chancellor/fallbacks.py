"""What is done when something fails: which steps are allowed, and the record of one that was taken."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

__all__ = ["Cause", "Fallback", "FallbackOptions", "Step"]

Cause = Literal["memory", "scheme", "engine", "import", "checkpoint", "died", "swap"]
"""What failed: memory for it, its scheme, the engine's start, the engine's import, its checkpoint, or its process. Or
nothing did, and its engine had to make room for another model (swap)."""
Step = Literal["restart", "smaller_cache", "shorter_context", "unquantised", "transformers", "other_model"]

Fallback = TypedDict(
    "Fallback",
    {
        "step": Step,
        "cause": Cause,
        "from": str,
        "to": str,
        "reason": str,
        "seconds_lost": float,
        "memory_before_mib": float | None,
        "memory_after_mib": float | None,
    },
)
"""One step. `from` and `to` name model, engine and scheme; the memory is what the device had free, in MiB, when it
failed and when that was cleaned up. It costs no second where the failure is known from a request before, nor does a
smaller cache, of which the memory is None."""


class FallbackOptions(BaseModel):
    """Which steps may be taken before a request fails: [fallback] in the catalog's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shorter_context: bool = True
    """With too little memory, serve the model with a shorter context."""
    unquantised: bool = True
    """When the scheme fails, serve the model without it, in half precision."""
    transformers: bool = True
    """When vLLM fails, run the model in plain transformers."""
    other_model: bool = True
    """When all else fails, answer with another model that may be chosen: the next lighter, else the next heavier. Never
    where the run asked for a model by name."""

    @classmethod
    def none(cls) -> "FallbackOptions":
        """Return the options that let every failure through."""
        return cls(shorter_context=False, unquantised=False, transformers=False, other_model=False)
