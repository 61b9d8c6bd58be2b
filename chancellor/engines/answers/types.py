"""Types of the values that JSON schemas allow."""

from typing import Any

from chancellor.engines.answers.references import found

__all__ = ["Types", "covers", "own_types", "type_of", "values_of"]


def values_of(schema: dict[str, Any]) -> list[Any] | None:
    """Return the values that a schema lists, or None."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def own_types(schema: dict[str, Any]) -> set[str] | None:
    """Return the types that a schema names, or None."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return {str(one) for one in kind}
    return {kind} if isinstance(kind, str) else None


def type_of(value: Any) -> str:
    """Return the type of a value."""
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def covers(wide: set[str], narrow: set[str]) -> bool:
    """Tell whether all values of some types are of others."""
    return narrow <= wide or ("number" in wide and narrow - {"integer"} <= wide)


class Types:
    """The types of the schemas within one.

    Args:
        root: the schema.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self._known: dict[str, set[str] | None] = {}

    def of(self, schema: Any) -> set[str] | None:
        """Return the types that a schema leaves; None if they may be any, or are not known."""
        if not isinstance(schema, dict):
            return None
        if (values := values_of(schema)) is not None:
            return {type_of(one) for one in values}
        if (own := own_types(schema)) is not None:
            return own
        if "$ref" in schema:
            return self._referred(str(schema["$ref"]))
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list):
                kinds = [self.of(one) for one in schema[name]]
                known = [one for one in kinds if one is not None]
                return set[str]().union(*known) if len(known) == len(kinds) else None
        parts = schema.get("allOf")
        each = (self.of(one) for one in parts) if isinstance(parts, list) else ()
        return next((one for one in each if one is not None), None)

    def _referred(self, reference: str) -> set[str] | None:
        if reference not in self._known:
            self._known[reference] = None  # for one that leads to itself
            self._known[reference] = self.of(found(self.root, reference))
        return self._known[reference]
