"""Which JSON schemas bind an answer so that it is valid: keywords that no grammar keeps are refused by their names."""

import re
from collections.abc import Callable
from typing import Any, Final

from chancellor.engines.base import Guide
from chancellor.errors import InvalidInputError

__all__ = ["bindable", "without_formats"]

_GUIDANCES: Final = frozenset(
    ("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri")
)
"""Formats that llguidance guides."""
_FORMATS: Final = _GUIDANCES | {"uri-reference", "uri-template", "json-pointer", "relative-json-pointer"}
"""Those that xgrammar does. Any other is what the standard says that a format is: a remark."""
_NEVER: Final = ("contains", "not", "if", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef")
"""Grammars know none of these: xgrammar leaves them out without a word, llguidance refuses them."""
_BESIDE: Final = ("$ref", "allOf", "anyOf", "oneOf")
"""What evaluates properties and items where the schema itself does not name them."""
_UNEVALUATED: Final = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
_AROUND: Final = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")
_LOOK: Final = "a pattern that looks ahead or behind"
_LENGTHS: Final = ("minLength", "maxLength")
_NAMED: Final = ("properties", "$defs", "definitions", "patternProperties")
_LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "propertyNames", *_UNEVALUATED)


class _UnboundError(Exception):
    def __init__(self, what: str, place: str) -> None:
        super().__init__(f"{what} at {place}")
        self.what = what


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
        return Guide(guide.kind, _bound(guide.value, "#", alone=xgrammar_only))
    except _UnboundError as error:
        raise InvalidInputError(
            f"No answer can be guided by this schema: nothing keeps {error}.",
            hint="Leave the keyword out and check the answer for it yourself: a list in place of a set, for instance.",
        ) from None


def without_formats(schema: Any) -> Any:
    """Return the schema without the formats that llguidance refuses."""
    if not isinstance(schema, dict):
        return schema
    return _parts(_formatted(schema, _GUIDANCES), "#", lambda one, _: without_formats(one))


def _bound(schema: Any, place: str, *, alone: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = _formatted(_telling(schema), _FORMATS)
    if unkept := _unkept(made):
        raise _UnboundError(unkept, place)
    if alone and any(length in made for length in _LENGTHS):
        made.pop("format", None)  # of the two, xgrammar keeps one: the one that binds
    if alone and (unkept := _unkept_by_xgrammar(made)):
        raise _UnboundError(unkept, place)
    if isinstance(made.get("anyOf"), list):
        made["anyOf"] = _branches(made["anyOf"], place, alone=alone)
    return _parts(made, place, lambda one, where: _bound(one, where, alone=alone))


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


def _branches(branches: list[Any], place: str, *, alone: bool) -> list[Any]:
    """Leave out texts whose pattern is not kept where there are other values: a decimal is a number, or such a text."""
    made, failed = [], None
    for number, one in enumerate(branches):
        try:
            made.append(_bound(one, f"{place}/anyOf/{number}", alone=alone))
        except _UnboundError as error:
            if error.what != _LOOK:
                raise
            failed = error
    if failed is not None and all(one == {"type": "null"} for one in made):
        raise failed
    return made


def _telling(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without what every value keeps; what is left unevaluated is said as grammars know it."""
    made = dict(schema)
    if not made.get("uniqueItems") or made.get("maxItems", 2) in (0, 1):
        made.pop("uniqueItems", None)
    if "contains" not in made or (made.get("minContains") == 0 and "maxContains" not in made):
        for name in ("contains", "minContains", "maxContains"):
            made.pop(name, None)
    if "if" not in made or not {"then", "else"} & made.keys():
        for name in ("if", "then", "else"):
            made.pop(name, None)
    if made.get("multipleOf") == 1 and made.get("type") == "integer":
        del made["multipleOf"]
    for name in ("dependentRequired", "dependentSchemas", "dependencies"):
        if made.get(name) == {}:
            del made[name]
    for name, known in _UNEVALUATED.items():
        if name not in made:
            continue
        if made[name] in (True, {}):
            del made[name]
        elif not any(one in made for one in _BESIDE):
            value = made.pop(name)
            made.setdefault(known, value)
    return made


def _unkept(schema: dict[str, Any]) -> str | None:
    if found := next((name for name in ("uniqueItems", *_NEVER, *_UNEVALUATED) if name in schema), None):
        return repr(found)
    patterns = [schema.get("pattern"), *_dict(schema.get("patternProperties"))]
    if any(isinstance(one, str) and _AROUND.search(one) for one in patterns):
        return _LOOK
    if "propertyNames" in schema and (_dict(schema.get("properties")) or _dict(schema.get("patternProperties"))):
        return "'propertyNames' beside 'properties'"
    names = schema.get("propertyNames")
    if isinstance(names, dict) and "pattern" in names and any(length in names for length in _LENGTHS):
        return "'propertyNames' with a pattern and a length"
    return None


def _unkept_by_xgrammar(schema: dict[str, Any]) -> str | None:
    if "pattern" in schema and any(length in schema for length in _LENGTHS):
        return "'pattern' beside a length"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return "'allOf' of several schemas"
    return "'multipleOf'" if "multipleOf" in schema else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _formatted(schema: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    form = schema.get("format", "")
    if "pattern" in schema or not isinstance(form, str) or form not in known:  # beside a pattern xgrammar keeps only it
        return {name: value for name, value in schema.items() if name != "format"}
    return schema
