"""Tool calls as text between tags, the form of Hermes and Qwen, and of every model here that has none of its own."""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from chancellor.engines.answers.guides import json_format
from chancellor.engines.answers.schemas import bounded
from chancellor.engines.base import Delta, ToolCallPiece

__all__ = ["FirstCall", "TaggedCalls", "as_text", "call_format", "call_id"]

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_TAIL: Final = len("}\n") + len(CLOSE)


def call_id() -> str:
    """Return a new id of a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def call_format(tools: Sequence[dict[str, Any]], *, forced: bool, parallel: bool) -> dict[str, Any]:
    """Return xgrammar's format for calls of these tools: whatever is called has the arguments that its schema asks for.

    Args:
        tools: the functions that may be called.
        forced: whether the answer is a call and nothing else; if not, text may stand before, between and after calls.
        parallel: whether there may be several calls.
    """
    tags = []
    for tool in tools:
        function = tool["function"]
        schema = bounded(function.get("parameters") or {"type": "object", "properties": {}})
        begin = f'{OPEN}\n{{"name": {json.dumps(function["name"])}, "arguments": '
        tags.append({"type": "tag", "begin": begin, "content": json_format(schema), "end": f"}}\n{CLOSE}"})
    if forced:
        several = {"at_least_one": True, "stop_after_first": not parallel}
        return {"type": "tags_with_separator", "tags": tags, "separator": "\n", **several}
    return {"type": "triggered_tags", "triggers": [OPEN], "tags": tags, "stop_after_first": not parallel}


def as_text(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation for a chat template that knows no tools: they are described, and calls are text."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            told.append({"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"})
        elif calls := message.get("tool_calls"):
            texts = [_written(call["function"]) for call in calls]
            told.append({"role": "assistant", "content": "\n".join(filter(None, [message.get("content"), *texts]))})
        else:
            told.append(dict(message))
    if tools:
        described = _description(tools)
        if told and told[0]["role"] == "system":
            told[0]["content"] = f"{told[0]['content']}\n\n{described}"
        else:
            told.insert(0, {"role": "system", "content": described})
    return told


def _written(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{OPEN}\n{{"name": {json.dumps(function["name"])}, "arguments": {text}}}\n{CLOSE}'


def _description(tools: Sequence[dict[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions, given as JSON with the schema of their arguments:\n"
        f"{listed}\n"
        "Where one of them helps to answer, call it, and write nothing else but:\n"
        f'{OPEN}\n{{"name": "function name", "arguments": {{"argument": "value"}}}}\n{CLOSE}\n'
        "Its result comes back to you in a <tool_response>. Else answer in words."
    )


class TaggedCalls:
    """Reads an answer piece by piece: text passes through, calls become calls."""

    def __init__(self) -> None:
        self._rest = ""
        self._inside = self._named = False
        self._index = -1
        self._arguments = ""
        self._whole_at_last = False

    def read(self, delta: Delta) -> Delta:
        """Return the delta with its calls taken out of its text."""
        self._rest += delta.text
        text: list[str] = []
        pieces: list[ToolCallPiece] = []
        last = delta.finish_reason is not None
        while self._step(text, pieces, last=last):
            pass
        called = self._index >= 0 and (delta.finish_reason == "stop" or self._whole_at_last)
        reason = "tool_calls" if called else delta.finish_reason
        shown = "".join(text)
        if self._index >= 0 and not shown.strip():
            shown = ""  # what stands between calls
        return replace(delta, text=shown, tool_calls=tuple(pieces), finish_reason=reason)

    def _step(self, text: list[str], pieces: list[ToolCallPiece], *, last: bool) -> bool:
        """Take something off the rest; return whether there may be more to take."""
        if not self._inside:
            before, found, after = self._rest.partition(OPEN)
            if found:
                text.append(before.rstrip() if before.strip() else "")
                self._rest, self._inside, self._named = after, True, False
                self._index += 1
                return True
            sure = self._rest
            if not last:  # white space before a call is not shown, and this may be the beginning of one
                sure = sure[: len(sure) - _overlap(sure, OPEN)].rstrip()
            text.append(sure)
            self._rest = self._rest[len(sure) :]
            return False
        if not self._named:
            if (head := _HEAD.match(self._rest)) is None:
                return self._whole(pieces, last=last)
            pieces.append(ToolCallPiece(self._index, call_id(), json.loads(f'"{head[1]}"')))
            self._rest, self._named, self._arguments = self._rest[head.end() :], True, ""
        if not self._arguments:  # white space that the head has not got yet
            self._rest = self._rest.lstrip()
        body, found, after = self._rest.partition(CLOSE)
        if found:
            pieces.append(ToolCallPiece(self._index, arguments=body.rstrip().removesuffix("}")))
            self._rest, self._inside = after, False
            return True
        cut = max(0, len(self._rest) - _TAIL)
        if last:
            cut = self._end()
        if cut:
            pieces.append(ToolCallPiece(self._index, arguments=self._rest[:cut]))
            self._arguments += self._rest[:cut]
            self._rest = self._rest[cut:]
        return False

    def _end(self) -> int:
        """Return where the arguments end in a rest that has no closing tag: it may only be the tag that was cut off."""
        text = self._arguments + self._rest
        try:
            _, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip()))
        except ValueError:
            return len(self._rest)
        self._whole_at_last = end >= len(self._arguments)
        return max(0, end - len(self._arguments))

    def _whole(self, pieces: list[ToolCallPiece], *, last: bool) -> bool:
        """Read a call that is not in the usual form once it is all there."""
        body, found, after = self._rest.partition(CLOSE)
        if not found and not last:
            return False
        self._rest, self._inside = after, False
        try:
            call = json.loads(body)
            name, arguments = str(call["name"]), call.get("arguments", call.get("parameters", {}))
            pieces.append(ToolCallPiece(self._index, call_id(), name, json.dumps(arguments, ensure_ascii=False)))
        except (ValueError, KeyError, TypeError, AttributeError):
            pieces.append(ToolCallPiece(self._index, call_id(), "", body.strip()))
        return bool(found)


class FirstCall:
    """Leaves out all calls but the first, where no guide ends the answer after it."""

    def read(self, delta: Delta) -> Delta:
        """Return the delta with what it has of the first call."""
        if all(piece.index == 0 for piece in delta.tool_calls):
            return delta
        return replace(delta, tool_calls=tuple(piece for piece in delta.tool_calls if piece.index == 0))


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the tag."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-size:])), 0)
