"""What of a message's content blocks models here read: the text."""

import json
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from chancellor.errors import InvalidInputError

__all__ = ["text_of"]

_KINDS: Final = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "a video",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
    "document": "a file",
    "media": "a media file",
}
"""Content blocks of LangChain, OpenAI, Anthropic, Google and Bedrock, whose blocks have such a key for a type."""
_TEXTS: Final = (None, "text", "output_text", "text-plain", "refusal")
"""What a model has said; other blocks of its messages with a text are of tools on its server."""
_THOUGHTS: Final = ("reasoning", "thinking", "redacted_thinking", "reasoning_content")
_CALLS: Final = {"tool_use": ("id", "input"), "function_call": ("call_id", "arguments")}
"""Calls as blocks, with the names of their id and arguments."""


def text_of(message: BaseMessage) -> BaseMessage:
    """Return the message with nothing but text in its content, and what LangChain turns into calls and tools' results.

    Models are not shown what they, or others, thought in earlier turns; calls are in `tool_calls`; what the tools of a
    provider's own server did is in its text.

    Raises:
        InvalidInputError: there is an image, audio, a video, a file, or a block of a user or tool that nobody knows.
    """
    if not isinstance(message.content, list):
        return message
    kept = [one for block in message.content if (one := _kept(block, message)) is not None]
    return message.model_copy(update={"content": kept or ""})


def _not_text(role: str, what: str) -> InvalidInputError:
    """Return the error for what no model here reads."""
    return InvalidInputError(
        f"A message of type {role!r} holds something other than text: {what}.",
        hint="The models here read text only: leave images and files out.",
    )


def _kept(block: Any, message: BaseMessage) -> Any:
    """Return what is left of a block, or None."""
    if isinstance(block, str):
        return block
    if block.get("type") == "non_standard" and isinstance(block.get("value"), dict):
        block = block["value"]
    kind = block.get("type")
    readable = kind in _TEXTS if isinstance(message, AIMessage) else kind not in _THOUGHTS
    for text in (block.get("text"), block.get("refusal")):
        if readable and isinstance(text, str):
            return {"type": "text", "text": text}
    found = next((_KINDS[one] for one in (kind, *block) if one in _KINDS), None)
    if found is not None:
        raise _not_text(message.type, found)
    if isinstance(message, AIMessage):
        return block if kind in _CALLS and _only_here(block, message) else None
    if kind in _THOUGHTS:
        return None
    if kind == "tool_result":
        inner = block.get("content")
        return {**block, "content": text_of(ToolMessage(inner, tool_call_id="")).content} if inner else block
    if kind == "json" and "json" in block:  # a tool's result in Bedrock's form
        return {"type": "text", "text": json.dumps(block["json"])}
    raise _not_text(message.type, f"a block of type {kind!r}")


def _only_here(block: dict[str, Any], message: AIMessage) -> bool:
    number, arguments = _CALLS[block["type"]]
    known = [call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)]
    return {number, arguments, "name"} <= block.keys() and block[number] not in known
