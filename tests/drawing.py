"""How schemathesis draws examples with the libraries as they are installed."""

from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis.internal.conjecture.utils import many
from hypothesis_jsonschema import _from_schema

__all__ = ["limits", "made_to_fit"]


class _Many(many):
    """What hypothesis-jsonschema expects of Hypothesis, and later releases of Hypothesis do otherwise."""

    _steps: Iterator[None] | None = None

    def more(self) -> bool:
        if self._steps is None:
            self._steps = iter(self.__enter__())
        goes_on = next(self._steps, self) is None
        if not goes_on:
            self.__exit__(None)
        return goes_on


def made_to_fit(patch: pytest.MonkeyPatch) -> None:
    """Let the libraries work together."""
    if not hasattr(many, "more"):
        patch.setattr(_from_schema, "cu", SimpleNamespace(many=_Many))


def limits(examples: int) -> hypothesis.settings:
    """Return settings for so many examples, the same in each run."""
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
