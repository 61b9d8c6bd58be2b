"""JSON schemas of what answers and calls are to look like, from whatever says it in Python."""

from enum import Enum
from typing import Any, Final, is_typeddict

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from typing_extensions import is_typeddict as is_extended_typeddict

from chancellor.chat.typed_dicts import as_model
from chancellor.engines.answers.schemas import recursive, untitled
from chancellor.errors import InvalidInputError

__all__ = ["UNUSABLE", "function_of", "known", "schema_of"]

UNUSABLE: Final = (ValueError, TypeError, KeyError, AttributeError, NameError, RuntimeError)
"""What LangChain and pydantic raise for what they make no schema of; pydantic's own, and a RecursionError, are of the
last kind."""
_JSON_TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
_ROOTS: Final = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""What a JSON schema may begin with in place of a type."""


def schema_of(schema: Any) -> dict[str, Any]:
    """Return the JSON schema of a pydantic class, a TypedDict, OpenAI's dict, or a JSON schema.

    Raises:
        InvalidInputError: it is none of these.
    """
    if isinstance(schema, dict) and (any(root in schema for root in _ROOTS) or _typed(schema.get("type"))):
        return schema
    try:
        schema = known(schema)
        if isinstance(schema, type) and is_basemodel_subclass(schema) and hasattr(schema, "model_json_schema"):
            whole: dict[str, Any] = schema.model_json_schema()  # with its references: types may hold themselves
            return whole
        found: dict[str, Any] = convert_to_json_schema(schema)
    except UNUSABLE as error:
        raise InvalidInputError(
            f"{schema!r} is no schema of an answer: {error}.",
            hint="Pass a pydantic class, a TypedDict, or a JSON schema with a title.",
        ) from error
    return found


def function_of(tool: Any) -> dict[str, Any]:
    """Return a tool in OpenAI's form. Types that hold themselves keep their references, which LangChain drops.

    Raises:
        Exception: what LangChain raises where it is no tool.
    """
    tool = known(tool)
    made = convert_to_openai_tool(tool)
    made["function"]["name"]  # which it has to have
    whole = None if isinstance(tool, dict) else _parameters(tool)
    if whole is None or not recursive(whole):
        return made
    definitions = {name: untitled(one) for name, one in whole["$defs"].items()}
    root = untitled({key: value for key, value in whole.items() if key != "$defs"})
    if isinstance(reference := root.get("$ref"), str):  # chat templates look for properties
        root = root | definitions[reference.removeprefix("#/$defs/")]
        del root["$ref"]
    root.pop("description", None)  # which the function has
    return {**made, "function": {**made["function"], "parameters": {**root, "$defs": definitions}}}


def _parameters(tool: Any) -> dict[str, Any] | None:
    """Return the schema of a tool's arguments as pydantic makes it, without those that LangGraph injects."""
    kind: Any = tool
    if isinstance(tool, BaseTool):
        kind = tool.tool_call_schema
    elif not isinstance(tool, type):
        kind = create_schema_from_function(
            tool.__name__, tool, parse_docstring=True, error_on_invalid_docstring=False, filter_args=(),
            include_injected=False,
        )  # fmt: skip
    if isinstance(kind, dict):
        return kind
    whole: dict[str, Any] | None = kind.model_json_schema() if hasattr(kind, "model_json_schema") else None
    return whole


def known(kind: Any) -> Any:
    """Return what LangChain and pydantic can take for it.

    Raises:
        TypeError: it is a class that neither an answer nor a call can be an object of.
    """
    if not isinstance(kind, type):
        return kind
    if issubclass(kind, Enum):
        raise TypeError(
            'an Enum is no object: make it a field of a class, or guide by structured_outputs={"choice": [...]}'
        )
    if kind.__module__ == "builtins":
        raise TypeError("it says nothing of what is in it")
    if is_typeddict(kind) or is_extended_typeddict(kind):
        try:
            return as_model(kind) or kind
        except (ValueError, TypeError, RuntimeError):
            return kind  # LangChain may take it; of a NameError it would make an empty schema
    return kind


def _typed(kind: Any) -> bool:
    return (
        kind in _JSON_TYPES
        if isinstance(kind, str)
        else isinstance(kind, list) and all(one in _JSON_TYPES for one in kind)
    )
