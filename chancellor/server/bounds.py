"""How much a request may hold, and how it is read so that one that is wrong costs no more than one that is right.

pydantic would report whatever is wrong, in each item and for each type that a value might have: a minute and gigabytes,
where a body has 4 MiB.
"""

import re
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, Field, Strict

__all__ = [
    "MOST_BIASES",
    "MOST_CHOICES",
    "MOST_MESSAGES",
    "MOST_PROMPTS",
    "MOST_TOOLS",
    "Biases",
    "Boolean",
    "Listed",
    "Real",
    "Whole",
    "crowded",
]

MOST_MESSAGES: Final = 4096
"""Messages of a conversation, and parts or calls of a message."""
MOST_TOOLS: Final = 512
MOST_PROMPTS: Final = 4096
MOST_CHOICES: Final = 4096
MOST_BIASES: Final = 65_536
_FIELDS: Final = 128
"""Fields of an object; but for schemas and other values that are taken as they are."""
_DEEPEST: Final = 5
"""Levels down to which a request has types of its own."""
_FREE: Final = frozenset(
    ("messages", "prompt", "stop", "logit_bias", "parameters", "schema", "json", "structural_tag", "choice")
)
"""What crowds nothing: it has limits of its own, or no type."""
_TOKEN: Final = re.compile(r"\d{1,9}", re.ASCII)
T = TypeVar("T")

Listed = Annotated[list[T], Field(fail_fast=True)]
"""A list that is read up to the first wrong item."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one type of numbers


Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
"""An integer, and not what can be made one: neither a text nor true."""
Real = Annotated[float, Strict()]
Boolean = Annotated[bool, Strict()]


def _biases(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_BIASES:
        raise ValueError(f"At most {MOST_BIASES:,} tokens can have a bias")
    for token, bias in value.items():  # pydantic would go on after the first wrong one
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (number and -100 <= bias <= 100 and isinstance(token, str) and _TOKEN.fullmatch(token)):
            return {token: bias}
    return value


Biases = Annotated[
    dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[Real, Field(ge=-100, le=100)]],
    BeforeValidator(_biases),
]
"""`logit_bias`."""


def crowded(value: Any, depth: int = _DEEPEST) -> str | None:
    """Return what is wrong if an object has more fields than any honest one: each that is not known is an error."""
    if depth == 0:
        return None
    if isinstance(value, dict):
        if len(value) > _FIELDS:
            return f"An object has {len(value):,} fields; {_FIELDS} are the most"
        inner = [one for key, one in value.items() if key not in _FREE]
    else:
        inner = value[: MOST_TOOLS + 1] if isinstance(value, list) else []
    return next((found for one in inner if (found := crowded(one, depth - 1))), None)
