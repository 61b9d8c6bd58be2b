"""vLLM's own parsers of tool calls and of reasoning, as readers of answers."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

from chancellor.engines.answers.calls import call_id
from chancellor.engines.base import Delta, GenerationRequest, ToolCallPiece
from chancellor.errors import InvalidInputError, MissingDependencyError, UnknownChoiceError

__all__ = ["VLLMCalls", "VLLMReasoning"]


class _Seen:
    """What has come so far, as vLLM's streaming parsers want it: before this piece, and with it."""

    def __init__(self) -> None:
        self.text, self.ids = "", list[int]()

    def add(self, text: str, ids: tuple[int, ...]) -> tuple[Any, ...]:
        before, before_ids = self.text, list(self.ids)
        self.text += text
        self.ids += ids
        return before, self.text, text, before_ids, list(self.ids), list(ids)


class VLLMCalls:
    """Reads a model's calls with one of vLLM's tool parsers."""

    def __init__(self, name: str, tokenizer: Any, request: GenerationRequest) -> None:
        from vllm.tool_parsers import ToolParserManager

        self._request = _chat_request(request)
        parser = _parser("tool parser", name, ToolParserManager.get_tool_parser, ToolParserManager)
        self._made = partial(_made, "tool parser", name, parser, tokenizer, self._request.tools)
        self._parser = self._made()
        self._request = self._parser.adjust_request(self._request)
        self.skip_special_tokens = bool(getattr(self._request, "skip_special_tokens", True))
        self._stream, self._seen = request.stream, _Seen()
        self._text, self._arguments = "", dict[int, str]()  # what the caller has, of each call

    def read(self, delta: Delta) -> Delta:
        cut = delta.finish_reason == "length"  # then what has come is read, and nothing of it is closed
        text, pieces = self._streamed(delta, cut=cut) if self._stream or cut else self._whole(delta.text)
        for piece in pieces:
            self._arguments[piece.index] = self._arguments.get(piece.index, "") + piece.arguments
        self._text += text
        if delta.finish_reason is not None and (self._stream or cut):
            text, pieces = self._completed(text, pieces, cut=cut)
        reason = "tool_calls" if delta.finish_reason == "stop" and self._arguments else delta.finish_reason
        return replace(delta, text=text, tool_calls=tuple(pieces), finish_reason=reason)

    def _streamed(self, delta: Delta, *, cut: bool) -> tuple[str, list[ToolCallPiece]]:
        text, calls = "", list[Any]()
        if delta.text or delta.token_ids:
            seen = self._seen.add(delta.text, delta.token_ids)
            if (message := self._parser.extract_tool_calls_streaming(*seen, self._request)) is not None:
                text, calls = message.content or "", [*(message.tool_calls or ())]
        if delta.finish_reason is not None and (message := _held_back(self._parser)) is not None:
            text += message.content or ""
            calls += [] if cut else message.tool_calls or ()
        return text, [_piece(call) for call in calls]

    def _whole(self, text: str) -> tuple[str, list[ToolCallPiece]]:
        found = self._made().extract_tool_calls(text, self._request)
        pieces = [
            ToolCallPiece(index, call.id or call_id(), call.function.name, call.function.arguments or "")
            for index, call in enumerate(found.tool_calls)
        ]
        return found.content or "", pieces

    def _completed(self, text: str, pieces: list[ToolCallPiece], *, cut: bool) -> tuple[str, list[ToolCallPiece]]:
        """Add what the parser has left out: some take one step a delta, and deltas may be many tokens.

        Its `get_remaining_unstreamed_args` knows the last call only, and closes the brackets of one that was cut off.
        """
        if cut and getattr(self._parser, "engine_based_streaming", False):
            return text, pieces  # it has all that there is; read as a whole, it would close brackets, too
        content, calls = self._whole(self._seen.text)
        added = []
        for call in calls:
            if (had := self._arguments.get(call.index)) is None:
                added.append(call)
            elif not _is_json(had) and call.arguments.startswith(had):
                added.append(ToolCallPiece(call.index, arguments=call.arguments[len(had) :]))
        self._arguments.update((call.index, call.arguments) for call in calls)
        if not self._arguments and content.startswith(self._text):
            text += content[len(self._text) :]  # what has only begun as a call
        return text, [*pieces, *added]


class VLLMReasoning:
    """Keeps a model's thoughts apart with one of vLLM's reasoning parsers."""

    def __init__(self, name: str, tokenizer: Any, request: GenerationRequest) -> None:
        from vllm.reasoning import ReasoningParserManager
        from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

        self._request = _chat_request(request)
        parser = _parser("reasoning parser", name, ReasoningParserManager.get_reasoning_parser, ReasoningParserManager)
        self._parser = _made("reasoning parser", name, parser, tokenizer)
        self._request = self._parser.adjust_request(self._request)
        self.skip_special_tokens = bool(getattr(self._request, "skip_special_tokens", True))
        self._stream, self._seen, self._done = request.stream, _Seen(), False
        self._engine = bool(getattr(self._parser, "engine_based_streaming", False))
        self._marks: list[tuple[str, int]] = []
        if isinstance(self._parser, BaseThinkingReasoningParser):
            self._marks = [(self._parser.start_token, self._parser.start_token_id)]
            self._marks += [(self._parser.end_token, self._parser.end_token_id)]
        self._waiting: tuple[str, tuple[int, ...]] = "", ()

    def read(self, delta: Delta) -> Delta:
        """Return the delta with its thoughts apart, and of its tokens those of the answer, for a reader of calls."""
        if not self._stream:
            reasoning, content = self._parser.extract_reasoning(delta.text, self._request)
            return replace(delta, reasoning=reasoning or "", text=content or "", token_ids=())
        if self._done:
            return delta
        last = delta.finish_reason is not None
        text, ids = self._waiting[0] + delta.text, self._waiting[1] + delta.token_ids
        if not last and any(token in ids and mark not in text for mark, token in self._marks):
            self._waiting = text, ids  # until the text of the mark is there: it may begin a stop text
            return replace(delta, text="", token_ids=())
        self._waiting = "", ()
        shown, thoughts, left = "", "", tuple[int, ...]()
        for piece, tokens in self._parted(text, ids):
            if self._done:
                shown, left = shown + piece, left + tokens
                continue
            messages = [self._parser.extract_reasoning_streaming(*self._seen.add(piece, tokens))]
            if self._ended(tokens):
                self._done, left = True, tuple(self._parser.extract_content_ids(list(tokens)))
                messages.append(_held_back(self._parser))
            shown += "".join(one.content or "" for one in messages if one is not None)
            thoughts += "".join(one.reasoning or "" for one in messages if one is not None)
        if last and not self._done and (rest := _held_back(self._parser)) is not None:
            shown, thoughts = shown + (rest.content or ""), thoughts + (rest.reasoning or "")
        return replace(delta, text=shown, reasoning=thoughts, token_ids=left)

    def _parted(self, text: str, ids: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Cut a delta so that each mark stands alone: beside other tokens, some of vLLM's parsers show it."""
        for mark, token in self._marks:
            if token in ids and mark in text:
                before, _, after = text.partition(mark)
                at = ids.index(token)
                alone = (mark, (token,))
                return [*self._parted(before, ids[:at]), alone, *self._parted(after, ids[at + 1 :])]
        return [(text, ids)] if text or ids else []

    def _ended(self, ids: tuple[int, ...]) -> bool:
        if self._engine:
            return bool(self._parser.has_engine_confirmed_reasoning_end())
        return bool(self._parser.is_reasoning_end_streaming(self._seen.ids, ids))


def _held_back(parser: Any) -> Any:
    """Return what a parser over vLLM's newer engine has kept until it was sure; the others keep nothing."""
    finish = getattr(parser, "finish_streaming", None)
    return finish() if finish is not None else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parser(kind: str, name: str, find: Any, registry: Any) -> Any:
    try:
        return find(name)
    except KeyError:
        known = sorted({*getattr(registry, f"{kind.replace(' ', '_')}s", ()), *getattr(registry, "lazy_parsers", ())})
        raise UnknownChoiceError.of(kind, name, known) from None
    except ImportError as error:
        raise MissingDependencyError(f"vLLM's {kind} {name!r} cannot be imported: {error}.") from error


def _made(kind: str, name: str, parser: Any, tokenizer: Any, *arguments: Any) -> Any:
    try:
        return parser(tokenizer, *arguments)
    except (RuntimeError, ValueError) as error:  # its tokens are not there
        raise InvalidInputError(
            f"vLLM's {kind} {name!r} does not go with this model's tokenizer: {error}",
            hint=f"Name another {kind.replace(' ', '_')} in the model's entry, or leave it out.",
        ) from error


def _chat_request(request: GenerationRequest) -> Any:
    """Return the request in vLLM's own form, for parsers that look at it."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tools = {"tools": list(request.tools), "tool_choice": "auto"} if request.tools else {}
    return ChatCompletionRequest(messages=request.messages, model="", **tools)


def _piece(call: Any) -> ToolCallPiece:
    function = call.function
    return ToolCallPiece(
        call.index or 0,
        call.id,
        function.name if function is not None else None,
        (function.arguments or "") if function is not None else "",
    )
