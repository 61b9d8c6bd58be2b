"""What one node leaves in the state for the next, where any of them may be somebody else's."""

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from chancellor.errors import InvalidInputError
from chancellor.state import Complexity, Level

__all__ = ["checked", "model_in"]

_LEVELS: Final = get_args(Level)


def checked(complexity: object) -> Complexity:
    """Return a complexity if it is one.

    Raises:
        InvalidInputError: it has no level, or one that there is not.
    """
    if isinstance(complexity, Mapping) and complexity.get("level") in _LEVELS:
        return cast("Complexity", complexity)
    raise InvalidInputError(
        f"{str(complexity)[:200]!r} is no complexity: it has no `level` that is one of {', '.join(_LEVELS)}.",
        hint='Return e.g. {"level": "low", "probability": None, "reasons": ["mine"], "analyzer": "mine"}.',
    )


def model_in(decision: Any) -> str:
    """Return the model that a decision names.

    Raises:
        InvalidInputError: it names none.
    """
    if isinstance(decision, Mapping) and isinstance(model := decision.get("model"), str):
        return model
    raise InvalidInputError(
        f"{str(decision)[:200]!r} is no decision: it names no `model`.",
        hint='Return e.g. {"decision": {"model": "NAME", "trinity_score": 99.0}} from the selection node.',
    )
