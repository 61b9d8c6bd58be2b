"""Which JSON schemas bind an answer so that it is valid: keywords that no grammar keeps are refused by their names."""

import re
from collections.abc import Callable
from typing import Any, Final

from chancellor.engines.answers.libraries import (
    GUIDANCES,
    LENGTHS,
    LOOK,
    formatted,
    guidance_takes,
    table,
    unkept,
    unkept_by_xgrammar,
)
from chancellor.engines.answers.references import steps
from chancellor.engines.answers.rewriting import rewritten
from chancellor.engines.answers.types import Types
from chancellor.engines.base import Guide
from chancellor.errors import InvalidInputError

__all__ = ["bindable", "for_guidance"]

_NAMED: Final = ("properties", "$defs", "definitions", "patternProperties")
_LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems")
_IN_LIST: Final = re.compile(rf"/({'|'.join((*_LISTED, 'items'))})/\d+(/|$)")
_CHECK: Final = "Leave the keyword out and check the answer for it yourself: a list in place of a set, for instance."
_BOTH: Final = (
    "vLLM keeps it where neither tools nor 'patternProperties' or 'propertyNames' come with it. Else write what stands "
    "beside '$ref', 'anyOf' or 'enum' into them, or leave the keyword out and check the answer for it yourself."
)
_ELSEWHERE: Final = "Put the schema that it means under '$defs' of the whole, and refer to it as '#/$defs/NAME'."
_MARK: Final = {"type": "integer", "multipleOf": 1}
"""Says nothing, and is what no release of vLLM's gives to xgrammar."""


class _UnboundError(Exception):
    def __init__(self, what: str, place: str, hint: str = _CHECK) -> None:
        super().__init__(f"{what} at {place}")
        self.hint = hint


def bindable(guide: Guide | None, *, xgrammar_only: bool = False) -> Guide | None:
    """Return the guide without what only remarks on values, or says nothing of them.

    Args:
        guide: as it is asked for.
        xgrammar_only: whether there is no other library that could take what xgrammar leaves out.

    Raises:
        InvalidInputError: its schema has a keyword that would not be kept.
    """
    if guide is None or guide.kind != "json_schema":
        return guide
    try:
        return Guide(guide.kind, _Binding(guide.value, alone=xgrammar_only).bound())
    except _UnboundError as error:
        raise InvalidInputError(
            f"No answer can be guided by this schema: nothing keeps {error}.", hint=error.hint
        ) from None


def for_guidance(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return a bindable schema so that vLLM gives it to llguidance; None if xgrammar keeps more of it."""
    try:
        _Binding(schema, alone=True, formats=True).bound()
    except _UnboundError:
        if guidance_takes(schema):
            return _marked(_without_formats(schema))
    return None


def _marked(schema: dict[str, Any]) -> dict[str, Any]:
    """Have vLLM take llguidance: not each of its releases knows all that xgrammar leaves out."""
    definitions, name = table(schema.get("$defs")), "chancellor"
    while name in definitions:
        name += "_"
    return {**schema, "$defs": {**definitions, name: _MARK}}


def _without_formats(schema: Any) -> Any:
    """Return the schema without the formats that llguidance refuses."""
    if not isinstance(schema, dict):
        return schema
    return _parts(formatted(schema, GUIDANCES), "#", lambda one, _: _without_formats(one))


class _Binding:
    """One look at a whole schema.

    Args:
        root: the schema.
        alone: whether xgrammar alone has to keep all of it.
        formats: whether it then has to keep formats beside lengths: if not, they are left out.
    """

    def __init__(self, root: Any, *, alone: bool, formats: bool = False) -> None:
        self._root, self._alone, self._formats = root, alone, formats
        self._types = Types(root)
        self._places: set[str] = set()
        self._references: list[tuple[Any, str]] = []
        self._bases: list[str] = []

    def bound(self) -> Any:
        made = self._bound(self._root, "#")
        for reference, place in self._references:
            if any(place == base or place.startswith(f"{base}/") for base in self._bases):
                raise _UnboundError("'$ref' below an '$id'", place, _ELSEWHERE)
            way = steps(reference)
            if way is None or "/".join(("#", *way)) not in self._places:
                raise _UnboundError(f"'$ref' to {str(reference)[:100]!r}", place, _ELSEWHERE)
        return made

    def _bound(self, schema: Any, place: str) -> Any:
        if _IN_LIST.search(place) is None:  # xgrammar does not find those
            self._places.add(place)
        if not isinstance(schema, dict):
            return schema
        made = rewritten(schema, self._types)
        if (what := unkept(made)) is not None:
            raise _UnboundError(what, place)
        if self._alone:
            if not self._formats and any(length in made for length in LENGTHS):
                made.pop("format", None)  # of the two, xgrammar keeps one: the one that binds
            if (what := unkept_by_xgrammar(made)) is not None:
                raise _UnboundError(what, place, _BOTH)
        if "$ref" in made:
            self._references.append((made["$ref"], place))
        if "$id" in made and place != "#":
            self._bases.append(place)
        if not (left := self._left_out(made, place)):
            return _parts(made, place, self._bound)
        made = _parts(made, place, lambda one, where: one if where in left else self._bound(one, where))
        made["anyOf"] = [one for number, one in enumerate(made["anyOf"]) if f"{place}/anyOf/{number}" not in left]
        return made

    def _left_out(self, schema: dict[str, Any], place: str) -> set[str]:
        """Return the places of texts whose pattern is not kept beside other values: a decimal is a number, or such."""
        branches = schema.get("anyOf")
        if not isinstance(branches, list):
            return set()
        looking = {number for number, one in enumerate(branches) if self._looks(one)}
        if all(one == {"type": "null"} for number, one in enumerate(branches) if number not in looking):
            return set()
        return {f"{place}/anyOf/{number}" for number in looking}

    def _looks(self, schema: Any) -> bool:
        if not isinstance(schema, dict) or schema.get("type") != "string":
            return False
        return unkept(rewritten(schema, self._types)) == LOOK


def _parts(schema: dict[str, Any], place: str, change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Return a copy with each schema in it changed."""
    made = dict(schema)
    for key in _NAMED:
        if isinstance(made.get(key), dict):
            made[key] = {name: change(one, f"{place}/{key}/{name}") for name, one in made[key].items()}
    for key in (*_LISTED, *_SINGLE):
        if isinstance(made.get(key), list):
            made[key] = [change(one, f"{place}/{key}/{number}") for number, one in enumerate(made[key])]
        elif key in made:
            made[key] = change(made[key], f"{place}/{key}")
    return made
