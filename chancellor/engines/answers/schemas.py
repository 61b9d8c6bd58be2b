"""JSON schemas that a small model can fill in without running on for ever."""

from collections.abc import Callable
from typing import Any, Final

__all__ = ["bounded", "recursive", "tight", "untitled"]

_LARGEST: Final = 10**15
"""Of the integers that JSON readers everywhere keep exactly, a round one."""
_SHORTEST: Final = 8
_ITEMS: Final = 3
_NESTED: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with limits on numbers that have none.

    A greedy model can go on with digits until its tokens are used up.
    """

    def limit(one: dict[str, Any]) -> None:
        if _is(one, "integer", "number") and not {"enum", "const"} & one.keys():
            if not {"minimum", "exclusiveMinimum"} & one.keys():
                one["minimum"] = -_LARGEST
            if not {"maximum", "exclusiveMaximum"} & one.keys():
                one["maximum"] = _LARGEST

    found: dict[str, Any] = _changed(schema, limit)
    return found


def tight(schema: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Return the schema with limits on texts and lists as well, so that an answer fits into so many tokens.

    A token has at least one character, so that characters are a safe measure. Limits of the schema's own stay; numbers
    get theirs from `bounded`.
    """
    texts = 0

    def count(one: dict[str, Any]) -> None:
        nonlocal texts
        texts += _is_open_text(one)

    _changed(schema, count)
    endless = recursive(schema)
    length = max(_SHORTEST, tokens // (2 * max(1, texts)))

    def limit(one: dict[str, Any]) -> None:
        if _is_open_text(one):
            one.setdefault("maxLength", max(length, one.get("minLength", 0)))
        if _is(one, "array"):
            most = 0 if _references(one.get("items")) & endless else _ITEMS
            one.setdefault("maxItems", max(most, one.get("minItems", 0)))
        if _is(one, "object") and isinstance(one.get("additionalProperties"), dict) and not one.get("properties"):
            one.setdefault("maxProperties", max(_ITEMS, one.get("minProperties", 0)))

    found: dict[str, Any] = _changed(schema, limit)
    return found


def untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without titles, which say the names of classes and fields once more."""

    def shorten(one: dict[str, Any]) -> None:
        one.pop("title", None)

    found: dict[str, Any] = _changed(schema, shorten)
    return found


def recursive(schema: dict[str, Any]) -> set[str]:
    """Return the definitions that hold themselves, at whatever depth."""
    definitions = {
        f"#/{place}/{name}": one for place in ("$defs", "definitions") for name, one in schema.get(place, {}).items()
    }
    reached = {name: _references(one) for name, one in definitions.items()}
    for _ in definitions:
        reached = {name: ones.union(*(reached.get(one, set()) for one in ones)) for name, ones in reached.items()}
    return {name for name, ones in reached.items() if name in ones}


def _is(schema: dict[str, Any], *types: str) -> bool:
    kind = schema.get("type")
    return kind in types if isinstance(kind, str) else isinstance(kind, list) and bool(set(kind) & set(types))


def _is_open_text(schema: dict[str, Any]) -> bool:
    return _is(schema, "string") and not {"enum", "const", "format", "pattern"} & schema.keys()


def _references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set[str]()
        return own.union(*(_references(one) for one in schema.values()))
    return set[str]().union(*(_references(one) for one in schema)) if isinstance(schema, list) else set()


def _changed(schema: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """Return a copy in which every subschema has been changed."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for key in _NESTED:
        if isinstance(copy.get(key), dict):
            copy[key] = {name: _changed(one, change) for name, one in copy[key].items()}
    for key in _LISTS:
        if isinstance(copy.get(key), list):
            copy[key] = [_changed(one, change) for one in copy[key]]
    for key in _SINGLE:
        if key in copy:
            copy[key] = _changed(copy[key], change)
    change(copy)
    return copy
