"""Between LangChain's messages and those of engines."""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages

from chancellor.chat.blocks import text_of
from chancellor.engines import Delta, TokenLogprob, ToolCallPiece
from chancellor.engines.joining import joined_calls
from chancellor.errors import InvalidInputError

__all__ = ["chunk_of", "message_of", "to_engine"]


def to_engine(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return the conversation as engines take it.

    Raises:
        InvalidInputError: a message holds something other than text and tool calls.
    """
    try:
        converted = convert_to_openai_messages([text_of(message) for message in messages], text_format="string")
    except (ValueError, TypeError, KeyError) as error:  # a block that lacks what its type has to have
        raise InvalidInputError(f"A message cannot be read: {error}.", hint="Change it, or leave it out.") from error
    for message in converted:
        if isinstance(content := message.get("content"), list):  # beside calls, or tools' results
            message["content"] = content = "\n".join(block["text"] for block in content if "text" in block)
        if (refusal := message.pop("refusal", None)) and not content:
            message["content"] = refusal
    return list(converted)


def message_of(deltas: Sequence[Delta], metadata: dict[str, Any]) -> AIMessage:
    """Return the whole answer."""
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    calls, invalid = _calls(pieces, cut=metadata.get("finish_reason") == "length")
    logprobs = [one for delta in deltas for one in delta.logprobs]
    reasoning = "".join(delta.reasoning for delta in deltas)
    return AIMessage(
        content="".join(delta.text for delta in deltas),
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        usage_metadata=_usage(deltas[-1]),
        response_metadata={**metadata, **_logprobs(logprobs)},
    )


def chunk_of(delta: Delta, metadata: dict[str, Any] | None) -> AIMessageChunk:
    """Return a piece of the answer; the last one carries the metadata, and the usage."""
    more: dict[str, Any] = {} if metadata is None else {"usage_metadata": _usage(delta), "chunk_position": "last"}
    if delta.tool_calls:
        more["tool_call_chunks"] = [
            tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)
            for piece in joined_calls(delta.tool_calls)
        ]
    if delta.reasoning:
        more["additional_kwargs"] = {"reasoning_content": delta.reasoning}
    if metadata is not None or delta.logprobs:
        more["response_metadata"] = {**(metadata or {}), **_logprobs(delta.logprobs)}
    return AIMessageChunk(content=delta.text, **more)


def _calls(pieces: Sequence[ToolCallPiece], *, cut: bool) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for index in dict.fromkeys(piece.index for piece in pieces):
        own = [piece for piece in pieces if piece.index == index]
        name = next((piece.name for piece in own if piece.name), None)
        number = next((piece.id for piece in own if piece.id), None)
        arguments = "".join(piece.arguments for piece in own)
        try:
            values = json.loads(arguments or ("" if cut and index == pieces[-1].index else "{}"))
        except ValueError:
            values = None
        if name and isinstance(values, dict):
            calls.append(tool_call(name=name, args=values, id=number))
        else:
            error = "The arguments are no JSON object; max_tokens may have cut them off."
            invalid.append(invalid_tool_call(name=name, args=arguments, id=number, error=error))
    return calls, invalid


def _usage(last: Delta) -> UsageMetadata:
    prompt, answer = last.input_tokens or 0, last.output_tokens or 0
    usage = UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)
    if last.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=last.cached_tokens)
    return usage


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return log probabilities in the form that OpenAI's have."""
    if not tokens:
        return {}
    content = [
        {
            "token": one.token,
            "logprob": one.logprob,
            "bytes": list(one.token.encode()),
            "top_logprobs": [
                {"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in one.top_tokens
            ],
        }
        for one in tokens
    ]
    return {"logprobs": {"content": content}}
