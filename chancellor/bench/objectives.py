"""Latency targets, and how many requests keep them: goodput."""

from collections.abc import Iterable, Sequence
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat

from chancellor.bench.report import Sample
from chancellor.errors import BenchmarkError

__all__ = ["Objectives"]

_FIELDS: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "latency": "latency_s"}


class Objectives(BaseModel):
    """Upper limits, in seconds; a request is good if it keeps all that are set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_s: PositiveFloat | None = None
    tpot_s: PositiveFloat | None = None
    """Time per output token after the first."""
    latency_s: PositiveFloat | None = None

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Read "ttft=0.5", "tpot=0.05", "latency=5", in seconds.

        Raises:
            BenchmarkError: a name or a number is wrong.
        """
        limits: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            try:
                limits[_FIELDS[name.strip()]] = number = float(value)
            except (KeyError, ValueError):
                number = 0.0
            if not number > 0:
                raise BenchmarkError(
                    f"{text!r} is no latency target.", hint=f"Give NAME=SECONDS with one of: {', '.join(_FIELDS)}."
                )
        return cls(**limits)

    def kept(self, samples: Sequence[Sample]) -> int | None:
        """Return how many of the samples are good; None without limits, or where one was measured for no sample.

        An answer of one token has no time per output token, and keeps every limit of it.
        """
        limits = {name: limit for name in _FIELDS.values() if (limit := getattr(self, name)) is not None}
        if not limits or (samples and any(all(_value(one, name) is None for one in samples) for name in limits)):
            return None
        return sum(
            all((value := _value(sample, name)) is not None and value <= limit for name, limit in limits.items())
            for sample in samples
        )


def _value(sample: Sample, name: str) -> float | None:
    if name == "tpot_s" and sample.output_tokens == 1:
        return 0.0
    value: float | None = getattr(sample, name)
    return value
