"""Answers as objects: guided by a schema, so that also a small model's are valid."""

from collections.abc import AsyncIterator, Iterator, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall, ToolCallChunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from chancellor.chat.options import tools_of
from chancellor.chat.schemas import UNUSABLE, known, schema_of
from chancellor.errors import InvalidInputError, UnknownChoiceError

__all__ = ["structured_output"]


def _refuse_cut(message: BaseMessage) -> None:
    """The parsers would close the brackets of an answer that was cut off, and go on."""
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "The answer was cut off before it was complete. Allow more tokens (max_tokens), or ask for less.",
            llm_output=str(message.text) or "".join(call["args"] or "" for call in _calls(message)),
        )


def _calls(message: BaseMessage) -> Sequence[InvalidToolCall | ToolCallChunk]:
    if isinstance(message, AIMessageChunk):
        return message.tool_call_chunks
    return message.invalid_tool_calls if isinstance(message, AIMessage) else ()


def _whole(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    for message in messages:
        _refuse_cut(message)
        yield message


async def _awhole(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for message in messages:
        _refuse_cut(message)
        yield message


_METHODS = ("json_schema", "function_calling", "json_mode")


def structured_output(
    model: BaseChatModel, schema: Any, method: str, *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return the model followed by a parser of its answers; see `ChatVLLM.with_structured_output`."""
    if method not in _METHODS:
        raise UnknownChoiceError.of("method of structured output", method, _METHODS)
    if schema is None and method != "json_mode":
        raise InvalidInputError("There is no schema.", hint='Pass one, or method="json_mode" for any JSON object.')
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser: Any
    if method == "function_calling":
        (tool,) = tools_of([schema])
        name = tool["function"]["name"]
        llm = model.bind_tools([schema], tool_choice=name, ls_structured_output_format=_noted(method, schema))
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)
            if is_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        guide: dict[str, Any] = {"type": "json_object"}
        if schema is not None:  # JSON of a known form is better than any JSON
            guide = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema_of(schema)}}
        llm = model.bind(response_format=guide, ls_structured_output_format=_noted(method, schema))
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
    parser = RunnableGenerator(_whole, _awhole) | parser
    if not include_raw:
        chain: Runnable[LanguageModelInput, Any] = llm | parser
        return chain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _noted(method: str, schema: Any) -> dict[str, Any] | None:
    """Return what tracers are told, who do not take every schema."""
    from langchain_core.utils.function_calling import convert_to_json_schema

    try:
        noted = None if schema is None else convert_to_json_schema(known(schema))
    except UNUSABLE:  # without a title, or with several types
        return None
    return {"kwargs": {"method": method}, "schema": noted}
