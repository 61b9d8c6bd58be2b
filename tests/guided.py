"""Schemas by the library that keeps them, with values that are valid and that are not; and such that none keeps."""

from typing import Any

INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def lists(names: list[str], **more: Any) -> dict[str, Any]:
    return {"type": "object", "propertyNames": {"enum": names}, "additionalProperties": {"type": "number"}, **more}


BASE = {"$defs": {"b": fields(a=INTEGER)}}
INHERITED = fields(b=TEXT)
DECIMAL = {"type": "string", "pattern": "(?!a)"}
Case = tuple[dict[str, Any], list[str], list[str]]
KEPT: dict[str, Case] = {
    "required, not declared": (
        {"type": "object", "properties": {"a": INTEGER}, "required": ["b"]},
        ['{"a": 1, "b": 2}'],
        ['{"a": 1}', "{}"],
    ),
    "required of the others": (
        {"type": "object", "required": ["b"], "additionalProperties": INTEGER},
        ['{"b": 1}'],
        ["{}", '{"b": "x"}'],
    ),
    "a record of an enum": (lists(["a", "b"], required=["a", "b"]), ['{"a": 1, "b": 2}'], ["{}", '{"a": 1}']),
    "some of an enum": (lists(["a", "b"]), ['{"b": 1}', "{}"], ['{"c": 1}', '{"a": "x"}']),
    "names beside properties": (
        lists(["a", "b"], properties={"a": INTEGER}),
        ['{"a": 1, "b": 1.5}'],
        ['{"a": 1.5}', '{"c": 1}'],
    ),
    "names by reference": (
        {"$defs": {"e": {"enum": ["a"]}}, **lists([]), "propertyNames": {"$ref": "#/$defs/e"}},
        ['{"a": 1}'],
        ['{"b": 1}'],
    ),
    "no names": ({"type": "object", "propertyNames": False}, ["{}"], ['{"a": 1}']),
    "minimum": (fields(a={"minimum": 3}), ['{"a": 3}'], ['{"a": 2}']),
    "minLength": (fields(a={"minLength": 3}), ['{"a": "abc"}'], ['{"a": "ab"}']),
    "pattern": (fields(a={"pattern": "^a$"}), ['{"a": "a"}'], ['{"a": "b"}']),
    "maxProperties": (fields(a={"maxProperties": 1}), ['{"a": {"b": 1}}'], ['{"a": {"b": 1, "c": 1}}']),
    "minItems": (fields(a={"minItems": 1}), ['{"a": [1]}'], ['{"a": []}']),
    "words for two types": (
        fields(a={"minLength": 2, "maximum": 3}),
        ['{"a": "ab"}', '{"a": 3}'],
        ['{"a": "a"}', '{"a": 4}'],
    ),
    "an enum and a type": (fields(a={"type": "string", "enum": ["a", 1]}), ['{"a": "a"}'], ['{"a": 1}']),
    "a const and an enum": (fields(a={"type": "string", "const": "a", "enum": ["a"]}), ['{"a": "a"}'], ['{"a": "b"}']),
    "a type beside a reference": ({**BASE, "type": "object", "$ref": "#/$defs/b"}, ['{"a": 1}'], ["{}"]),
    "a type beside anyOf": (
        {"type": "object", "anyOf": [fields(a=INTEGER), fields(b=TEXT)]},
        ['{"b": "x"}'],
        ['{"b": 1}', "1"],
    ),
    "a lone allOf": ({**BASE, "allOf": [{"$ref": "#/$defs/b"}], "description": "x"}, ['{"a": 1}'], ["{}"]),
    "an address of zod's": (
        fields(a={"type": "string", "format": "email", "pattern": EMAIL}),
        ['{"a": "a@b.co"}'],
        ['{"a": "ab"}'],
    ),
    "an address or nothing": (
        {"anyOf": [{"type": "string", "format": "email", "pattern": EMAIL}, {"type": "null"}]},
        ['"a@b.co"', "null"],
        ['"ab"'],
    ),
    "a decimal": ({"anyOf": [{"type": "number"}, DECIMAL, {"type": "null"}]}, ["1.5", "null"], ['"b"', '"a"']),
    "a class of characters": ({"type": "string", "pattern": "^[(?=]+$"}, ['"(?"'], ['"a"']),
    "names by patterns": (
        {"type": "object", "patternProperties": {"^a-.*$": INTEGER, "^b-.*$": TEXT}, "properties": {"c": TEXT}},
        ['{"a-x": 1}', '{"c": "x"}'],
        ['{"a-x": "x"}', '{"b-x": 1}', '{"c": 1}'],
    ),
    "a place in the whole": (
        fields(a=INTEGER, b={"$ref": "#/properties/a"}),
        ['{"a": 1, "b": 2}'],
        ['{"a": 1, "b": ""}'],
    ),
}
BY_GUIDANCE: dict[str, Case] = {
    "a pattern and a length": ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ['"abc"'], ['"abcd"', '"1"']),
    "one or nothing": (
        {"type": ["string", "null"], "pattern": "^a+$", "maxLength": 3},
        ['"aa"', "null"],
        ['"aaaa"', '"b"'],
    ),
    "a multiple or nothing": ({"type": ["integer", "null"], "multipleOf": 5}, ["5", "null"], ["6"]),
    "a multiple": (fields(a={"multipleOf": 5}), ['{"a": 10}'], ['{"a": 6}']),
    "two schemas": (
        {"allOf": [fields(a=INTEGER), fields(b=INTEGER)]},
        ['{"a": 1, "b": 1}'],
        ['{"a": 1}', '{"b": 1}'],
    ),
    "inheritance": (
        {**BASE, "allOf": [{"$ref": "#/$defs/b"}], **INHERITED},
        ['{"a": 1, "b": "x"}'],
        ['{"a": 1}', '{"b": "x"}'],
    ),
    "a reference and more": (
        {**BASE, "$ref": "#/$defs/b", **INHERITED},
        ['{"a": 1, "b": "x"}'],
        ['{"a": 1}', '{"b": "x"}'],
    ),
    "either, beside properties": (
        {**fields(c=INTEGER), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"c": 1, "a": 1}', '{"c": 1, "b": 1}'],
        ['{"c": 1}', '{"a": 1}'],
    ),
    "an enum and a length": ({"type": "string", "enum": ["a", "bb"], "maxLength": 1}, ['"a"'], ['"bb"']),
    "a name that is taken": (
        {"$defs": {"chancellor": INTEGER}, **fields(a={"$ref": "#/$defs/chancellor"}, b={"multipleOf": 5})},
        ['{"a": 1, "b": 5}'],
        ['{"a": "", "b": 5}'],
    ),
}
LONG: Case = ({"type": "string", "format": "email", "maxLength": 8}, ['"a@b.co"'], ['"aaaaaaaa@b.co"', '"x"'])
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an object with a look-ahead in it": (
        "looks ahead or behind at #/anyOf/1/properties/a",
        {"anyOf": [{"type": "number"}, fields(a=DECIMAL)]},
    ),
    "names that look ahead": (
        "of a property's name, at #/anyOf/1",
        {"anyOf": [{"type": "number"}, {"type": "object", "patternProperties": {"(?!a)": {}}}]},
    ),
    "required beside patterns": (
        "'required' of a property that is not named",
        {"type": "object", "patternProperties": {"^a": INTEGER}, "required": ["b"]},
    ),
    "required, and forbidden": (
        "'required' of a property that is not named",
        {"type": "object", "required": ["b"], "additionalProperties": False},
    ),
    "names and patterns": (
        "'propertyNames' beside 'patternProperties'",
        {"type": "object", "propertyNames": {"pattern": "^a"}, "patternProperties": {"^a": INTEGER}},
    ),
    "names and none": (
        "'propertyNames' beside 'additionalProperties'",
        {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": False},
    ),
    "names of several kinds": (
        "'propertyNames' that are not given by",
        {"type": "object", "propertyNames": {"anyOf": [{"const": "a"}, {"pattern": "^b"}]}},
    ),
    "a name with two schemas": (
        "'patternProperties' for a name in 'properties'",
        {"type": "object", "properties": {"ab": TEXT}, "patternProperties": {"^a": INTEGER}},
    ),
    "patterns that meet": (
        "'patternProperties' that do not begin",
        {"type": "object", "patternProperties": {"^a": INTEGER, "b$": TEXT}},
    ),
    "an anchor": (
        "'$ref' to '#x' at #/properties/a",
        {"$defs": {"y": {"$anchor": "x", **INTEGER}}, **fields(a={"$ref": "#x"})},
    ),
    "an address": (
        "'$ref' to 'http://a/b'",
        {"$defs": {"y": {"$id": "http://a/b", **INTEGER}}, **fields(a={"$ref": "http://a/b"})},
    ),
    "elsewhere": (
        "'$ref' to '#/components/x'",
        {"components": {"x": {"uniqueItems": True}}, **fields(a={"$ref": "#/components/x"})},
    ),
    "below an address": (
        "'$ref' below an '$id' at #/properties/a",
        {"$defs": {"t": INTEGER}, **fields(a={"$id": "http://a/b", "$defs": {"t": TEXT}, "$ref": "#/$defs/t"})},
    ),
    "a const of another type": ("'const' of another type", fields(a={"type": "string", "const": 1})),
}
