"""What the libraries that guide answers keep of a JSON schema: xgrammar, and llguidance for vLLM."""

import json
import re
from typing import Any, Final

from chancellor.engines.answers.types import covers, own_types, type_of, values_of

__all__ = [
    "FORMATS",
    "GUIDANCES",
    "KEYWORDS",
    "LENGTHS",
    "LOOK",
    "formatted",
    "guidance_takes",
    "looks",
    "table",
    "unkept",
    "unkept_by_xgrammar",
]

GUIDANCES: Final = frozenset(
    ("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri")
)
"""Formats that llguidance guides."""
FORMATS: Final = GUIDANCES | {"uri-reference", "uri-template", "json-pointer", "relative-json-pointer"}
"""Those that xgrammar does. Any other is what the standard says that a format is: a remark."""
LOOK: Final = "a pattern that looks ahead or behind"
LENGTHS: Final = ("minLength", "maxLength")
KEYWORDS: Final = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": (*LENGTHS, "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""For each type, what is said of its values."""
_VALUES: Final = ("enum", "const")
_COMBINED: Final = ("$ref", "allOf", "anyOf", "oneOf")
_ASSERTED: Final = (*_COMBINED, *_VALUES, "type", *(name for names in KEYWORDS.values() for name in names))
_NEVER: Final = (
    "contains",
    "not",
    "if",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "$dynamicRef",
    "$recursiveRef",
    "unevaluatedProperties",
    "unevaluatedItems",
)
"""Grammars know none of these: xgrammar leaves them out without a word, llguidance refuses them."""
_NOT_GUIDANCES: Final = ("patternProperties", "propertyNames")
"""Keywords that only xgrammar keeps: vLLM would ask a third library, or refuse."""
_ESCAPED: Final = re.compile(r"\\.", re.DOTALL)
_CLASS: Final = re.compile(r"\[[^\]]*\]")
_AROUND: Final = re.compile(r"\(\?<?[=!]")
_BEGINNING: Final = re.compile(r"\^([\w-]+)([*?{])?")


def table(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, else none."""
    return value if isinstance(value, dict) else {}


def looks(pattern: Any) -> bool:
    """Tell whether a pattern looks ahead or behind."""
    return isinstance(pattern, str) and _AROUND.search(_CLASS.sub("", _ESCAPED.sub("_", pattern))) is not None


def formatted(schema: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return the schema without a format that is none of the known."""
    form = schema.get("format", "")
    if "pattern" in schema or not isinstance(form, str) or form not in known:  # beside a pattern xgrammar keeps only it
        return {name: value for name, value in schema.items() if name != "format"}
    return schema


def guidance_takes(schema: dict[str, Any]) -> bool:
    """Tell whether vLLM may give the schema to llguidance."""
    text = json.dumps(schema)
    return not any(f'"{keyword}":' in text for keyword in _NOT_GUIDANCES)


def unkept(schema: dict[str, Any]) -> str | None:
    """Return what in the schema itself no library keeps, in words; None if there is no such thing."""
    if found := next((name for name in ("uniqueItems", *_NEVER) if name in schema), None):
        return repr(found)
    if looks(schema.get("pattern")):
        return LOOK
    declared, patterns = table(schema.get("properties")), table(schema.get("patternProperties"))
    required = schema.get("required")
    if isinstance(required, list) and not {str(name) for name in required} <= declared.keys():
        return "'required' of a property that is not named"
    if any(map(looks, patterns)):
        return f"{LOOK}, of a property's name,"
    own, values = own_types(schema), values_of(schema)
    if own is not None and values and not any(covers(own, {type_of(one)}) for one in values):
        return f"'{'const' if 'const' in schema else 'enum'}' of another type than 'type'"
    if "propertyNames" in schema:
        return _unkept_names(schema, declared, patterns)
    return _shared(declared, patterns)


def _unkept_names(schema: dict[str, Any], declared: dict[str, Any], patterns: dict[str, Any]) -> str | None:
    if declared or patterns:
        return f"'propertyNames' beside '{'properties' if declared else 'patternProperties'}'"
    if schema.get("additionalProperties") is False:
        return "'propertyNames' beside 'additionalProperties' that allow none"
    names = table(schema["propertyNames"])
    said = {name for name in _ASSERTED if name in names and name != "type"}
    if "pattern" in said and said & set(LENGTHS):
        return "'propertyNames' with a pattern and a length"
    if names.get("type", "string") != "string" or said & {
        *_COMBINED,
        *(name for kind in ("object", "array", "number") for name in KEYWORDS[kind]),
    }:
        return "'propertyNames' that are not given by a list, a pattern, a length or a format"
    several = len(said - set(LENGTHS)) + bool(said & set(LENGTHS)) > 1
    return "'propertyNames' with several conditions" if several else None


def _shared(declared: dict[str, Any], patterns: dict[str, Any]) -> str | None:
    """Return the reason if two of the schema's own may be said of one name, of which xgrammar keeps one."""
    if not patterns or len(declared) + len(patterns) == 1:
        return None
    begins = [_beginning(pattern) for pattern in patterns]
    for number, one in enumerate(begins):
        if not one or any(other.startswith(one) or one.startswith(other) for other in begins[number + 1 :]):
            return "'patternProperties' that do not begin each with letters of its own"
        if any(name.startswith(one) for name in declared):
            return "'patternProperties' for a name in 'properties'"
    return None


def _beginning(pattern: str) -> str:
    """Return what all texts begin with that the pattern fits, as far as it is easily seen."""
    found = None if "|" in pattern else _BEGINNING.match(pattern)
    if found is None:
        return ""
    return found[1][:-1] if found[2] else found[1]


def unkept_by_xgrammar(schema: dict[str, Any]) -> str | None:
    """Return what in a bindable schema itself xgrammar does not keep, but llguidance does; None if there is no such."""
    length = any(name in schema for name in LENGTHS)
    if length and "pattern" in schema:
        return "'pattern' beside a length"
    if length and "format" in schema:
        return "'format' beside a length"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return "'allOf' of several schemas"
    if "multipleOf" in schema:
        return "'multipleOf'"
    for name in (*_COMBINED, *_VALUES):  # xgrammar reads the first of them, and nothing else
        if name in schema:
            beside = (one for one in _ASSERTED if one in schema and one != name)
            other = next((one for one in beside if name not in _VALUES or one != "type"), None)
            return None if other is None else f"'{name}' beside '{other}'"
    return None
