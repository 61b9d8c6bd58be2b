"""What a call of a chat model can ask for: tools, and the form of the answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool

from chancellor.chat.schemas import UNUSABLE, function_of, schema_of
from chancellor.engines import Guide
from chancellor.errors import InvalidInputError, UnknownChoiceError

__all__ = ["check_names", "choice_of", "guide_of", "tools_of"]

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool
_GUIDES = ("regex", "choice", "grammar", "structural_tag")


def tools_of(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Return the tools in OpenAI's form.

    Raises:
        InvalidInputError: one of them is no tool.
    """
    made: list[dict[str, Any]] = []
    for tool in tools:
        try:
            one = function_of(tool)
        except UNUSABLE as error:
            raise InvalidInputError(
                f"{tool!r} cannot be used as a tool: {error}.",
                hint="Pass a function with annotations and a docstring, a tool, a pydantic class, or OpenAI's dict.",
            ) from error
        made.append(one)
    return made


def check_names(tools: Sequence[dict[str, Any]]) -> None:
    """Check that a model can tell the tools apart.

    Raises:
        InvalidInputError: two different ones have the same name.
    """
    known: dict[str, Any] = {}
    for tool in tools:
        name = tool["function"]["name"]
        if known.setdefault(name, tool) != tool:
            raise InvalidInputError(f"Two tools are called {name!r}.", hint="Give each tool a name of its own.")


def choice_of(choice: Any, tools: Sequence[dict[str, Any]]) -> str:
    """Return a tool choice as engines know it: "auto", "none", "required", or the name of one of the tools.

    Raises:
        UnknownChoiceError: it is none of these.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        choice = _plain(choice, names)
    if choice is None or choice is False:
        return "auto"
    if choice not in ("auto", "none") and not names:
        raise InvalidInputError(
            f"tool_choice is {choice!r}, and there are no tools.", hint="Pass tools, or leave it out."
        )
    if choice in ("any", True):
        return "required"
    if choice in ("auto", "none", "required") or choice in names:
        return str(choice)
    raise UnknownChoiceError.of("tool choice", choice, ["auto", "any", "none", *names])


def _plain(choice: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what a choice in OpenAI's or Anthropic's form stands for."""
    kind = choice.get("type")
    if kind in ("auto", "any", "none", "required"):
        return str(kind)
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if kind in (None, "function", "tool") and isinstance(name, str):
        return name
    raise UnknownChoiceError(
        f"There is no tool choice {choice!r}.",
        hint=f"Choose one of: {', '.join(['auto', 'any', 'none', *names])}; "
        'or give {"type": "function", "function": {"name": ...}}. For some of the tools only, pass no others.',
    )


def guide_of(response_format: Any, structured_outputs: Any) -> Guide | None:
    """Return the guide for OpenAI's `response_format`, or for vLLM's `structured_outputs`.

    Raises:
        InvalidInputError: it is of no known form.
    """
    if structured_outputs is not None:
        asked = structured_outputs if isinstance(structured_outputs, Mapping) else {}
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) != 1 or (kind := next(iter(given))) not in (*_GUIDES, "json"):
            raise InvalidInputError(
                f"structured_outputs is {structured_outputs!r}.",
                hint=f"Give exactly one of: json, {', '.join(_GUIDES)}.",
            )
        return Guide("json_schema", _given(given["json"])) if kind == "json" else Guide(kind, given[kind])
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Guide("json_object")
    if kind == "json_schema" and isinstance(named := response_format.get("json_schema"), Mapping):
        schema = named.get("schema")
        return Guide("json_object") if schema is None else Guide("json_schema", _given(schema))
    if isinstance(response_format, type):
        return Guide("json_schema", schema_of(response_format))
    raise InvalidInputError(
        f"response_format is {response_format!r}.",
        hint='Give {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}} or {"type": "json_object"}.',
    )


def _given(schema: Any) -> dict[str, Any]:
    """Return a schema that stands where nothing but JSON schemas stand: whether it is one, the guide will say."""
    if isinstance(schema, str):  # which vLLM takes, too
        try:
            schema = json.loads(schema)
        except ValueError:
            raise InvalidInputError(
                f"{schema[:200]!r} is no JSON schema.", hint="Pass an object, or its JSON as a text."
            ) from None
    return schema if isinstance(schema, dict) else schema_of(schema)
