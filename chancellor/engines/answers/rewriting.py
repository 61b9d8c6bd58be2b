"""JSON schemas said again in words that grammars know: with the same values, or with fewer."""

import json
from typing import Any, Final

from chancellor.engines.answers.libraries import FORMATS, KEYWORDS, formatted, looks, table
from chancellor.engines.answers.references import found
from chancellor.engines.answers.types import Types, covers, own_types, type_of, values_of

__all__ = ["rewritten"]

_BESIDE: Final = ("$ref", "allOf", "anyOf", "oneOf")
"""What evaluates properties and items where the schema itself does not name them."""
_TYPED: Final = ("type", "enum", "const", *_BESIDE)
_UNEVALUATED: Final = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
_NESTS: Final = 16


def rewritten(schema: dict[str, Any], types: Types) -> dict[str, Any]:
    """Return a copy of a schema without what every value keeps or what only remarks; the schemas in it stay.

    Args:
        schema: what is said at one place.
        types: those of the whole.
    """
    made = _evaluated(_telling(schema))
    if "propertyNames" in made:
        _named(made, types.root)
    if looks(made.get("pattern")) and made.get("format") in sorted(FORMATS):
        del made["pattern"]  # zod says an address by both
    made = formatted(made, FORMATS)
    _required(made)
    _typed(made, types)
    return made


def _telling(schema: dict[str, Any]) -> dict[str, Any]:
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
    return made


def _evaluated(made: dict[str, Any]) -> dict[str, Any]:
    for name, known in _UNEVALUATED.items():
        if name not in made:
            continue
        if made[name] in (True, {}):
            del made[name]
        elif not any(one in made for one in _BESIDE):
            value = made.pop(name)
            made.setdefault(known, value)
    return made


def _named(made: dict[str, Any], root: Any) -> None:
    """Say names that are listed as properties, and leave out that names are texts."""
    names = made["propertyNames"]
    for _ in range(_NESTS):  # an Enum of pydantic's is a reference
        if isinstance(names, dict) and names.keys() & {*_TYPED, *_UNEVALUATED} == {"$ref"}:
            names = found(root, names["$ref"])
    said = {"type", "enum", "const", *(name for known in KEYWORDS.values() for name in known), *_BESIDE, "not", "if"}
    said &= table(names).keys()
    if names is False:
        made["propertyNames"] = names = {"enum": []}
        said = {"enum"}
    if names is True or (isinstance(names, dict) and (not said or (said == {"type"} and names["type"] == "string"))):
        del made["propertyNames"]
        return
    if not isinstance(names, dict):
        return
    made["propertyNames"] = names
    listed = names.get("enum", [names.get("const")])
    if not said <= {"type", "enum", "const"} or len(said - {"type"}) != 1 or not isinstance(listed, list):
        return
    if made.get("patternProperties") or names.get("type", "string") != "string" or any(one in made for one in _BESIDE):
        return
    declared, other = table(made.get("properties")), made.get("additionalProperties", {})
    keys = [one for one in listed if isinstance(one, str) and (one in declared or other is not False)]
    made["properties"] = {key: declared.get(key, other) for key in keys}
    made["additionalProperties"] = False
    del made["propertyNames"]


def _required(made: dict[str, Any]) -> None:
    """Declare what is required: xgrammar knows of no other properties that have to be there."""
    required = made.get("required")
    if not isinstance(required, list) or "patternProperties" in made or "propertyNames" in made:
        return
    declared, other = table(made.get("properties")), made.get("additionalProperties", {})
    undeclared = {one: other for one in required if isinstance(one, str) and one not in declared}
    if undeclared and other is not False:
        made["properties"] = {**declared, **undeclared}


def _typed(made: dict[str, Any], types: Types) -> None:
    """Leave out a type that is said by the rest as well, and name the one that keywords without a type are for."""
    own = own_types(made)
    if not any(one in made for one in _TYPED):
        if kinds := [kind for kind, names in KEYWORDS.items() if any(name in made for name in names)]:
            made["type"] = kinds[0] if len(kinds) == 1 else kinds
            own = set(kinds)
    elif own is not None and (values := values_of(made)) is not None:
        if "const" not in made:
            made["enum"] = [one for one in values if covers(own, {type_of(one)})] or values
    elif own is not None:
        rest = types.of({name: value for name, value in made.items() if name != "type"})
        if rest is not None and covers(own, rest):
            del made["type"]
    listed = made.get("enum")
    if "const" in made and isinstance(listed, list) and _written(made["const"]) in map(_written, listed):
        del made["enum"]
    # xgrammar takes a list or an object of which nothing is said for an empty one, once it has to have a size.
    if own and "array" in own and made.keys() & {"minItems", "maxItems"} and not made.keys() & {"items", "prefixItems"}:
        made["items"] = {}
    sized = made.keys() & {"minProperties", "maxProperties"}
    if own and "object" in own and sized and not made.keys() & set(KEYWORDS["object"][:5]):
        made["additionalProperties"] = {}


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
