"""Guides in the form that xgrammar takes."""

import json
import re
from typing import Any, Final

from chancellor.engines.base import Guide
from chancellor.errors import InvalidInputError

__all__ = ["json_format", "refusal_of", "refused", "structural_tag"]

_SPACES: Final = 1
"""White space in a row that a guided answer may have: more is only ever a model that has lost its way."""


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Return xgrammar's format for JSON of a schema."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _SPACES}


def structural_tag(form: dict[str, Any]) -> Guide:
    """Return the guide for a format of xgrammar's."""
    return Guide("structural_tag", json.dumps({"type": "structural_tag", "format": form}))


def refusal_of(guide: Guide | None) -> str | None:
    """Return why xgrammar cannot guide an answer so, or None if it can."""
    if guide is None or guide.kind == "choice":
        return None
    import xgrammar

    make: Any = {
        "regex": xgrammar.Grammar.from_regex,
        "grammar": xgrammar.Grammar.from_ebnf,
        "structural_tag": xgrammar.Grammar.from_structural_tag,
    }.get(guide.kind, xgrammar.Grammar.from_json_schema)
    try:
        make(json.dumps(guide.value) if guide.kind == "json_schema" else guide.value or "{}")
    except Exception as error:  # noqa: BLE001 - of its own classes, different in each release
        return re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).strip().splitlines()[-1])  # where in its source it was
    return None


def refused(reason: str) -> InvalidInputError:
    """Return the error for a guide that xgrammar cannot use."""
    return InvalidInputError(
        f"No answer can be guided by this schema: {reason}",
        hint="Leave out what it names; see the documentation of xgrammar for what a schema may have.",
    )
