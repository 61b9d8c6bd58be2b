"""vLLM's own parsers of tool calls and of reasoning, as readers of answers."""

from dataclasses import replace
from typing import Any

from chancellor.engines.answers.calls import call_id
from chancellor.engines.base import Delta, GenerationRequest, ToolCallPiece
from chancellor.errors import MissingDependencyError, UnknownChoiceError

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
        self._parser = parser(tokenizer, self._request.tools)
        self._request = self._parser.adjust_request(self._request)
        self.skip_special_tokens = bool(getattr(self._request, "skip_special_tokens", True))
        self._stream, self._seen, self._called = request.stream, _Seen(), False

    def read(self, delta: Delta) -> Delta:
        if not self._stream:
            found = self._parser.extract_tool_calls(delta.text, self._request)
            pieces = tuple(
                ToolCallPiece(index, call.id or call_id(), call.function.name, call.function.arguments or "")
                for index, call in enumerate(found.tool_calls)
            )
            text = found.content or ""
        else:
            message = self._parser.extract_tool_calls_streaming(
                *self._seen.add(delta.text, delta.token_ids), self._request
            )
            pieces = tuple(_piece(call) for call in message.tool_calls or ()) if message is not None else ()
            text = (message.content or "") if message is not None else ""
        self._called = self._called or bool(pieces)
        reason = "tool_calls" if delta.finish_reason == "stop" and self._called else delta.finish_reason
        return replace(delta, text=text, tool_calls=pieces, finish_reason=reason)


class VLLMReasoning:
    """Keeps a model's thoughts apart with one of vLLM's reasoning parsers."""

    def __init__(self, name: str, tokenizer: Any, request: GenerationRequest) -> None:
        from vllm.reasoning import ReasoningParserManager

        self._request = _chat_request(request)
        parser = _parser("reasoning parser", name, ReasoningParserManager.get_reasoning_parser, ReasoningParserManager)
        self._parser = parser(tokenizer)
        self._stream, self._seen, self._done = request.stream, _Seen(), False

    def read(self, delta: Delta) -> Delta:
        if not self._stream:
            reasoning, content = self._parser.extract_reasoning(delta.text, self._request)
            return replace(delta, reasoning=reasoning or "", text=content or "")
        if self._done:
            return delta
        seen = self._seen.add(delta.text, delta.token_ids)
        message = self._parser.extract_reasoning_streaming(*seen)
        self._done = self._parser.is_reasoning_end(self._seen.ids)
        if message is None:
            return replace(delta, text="")
        return replace(delta, text=message.content or "", reasoning=message.reasoning or "")


def _parser(kind: str, name: str, find: Any, registry: Any) -> Any:
    try:
        return find(name)
    except KeyError:
        known = sorted({*getattr(registry, f"{kind.replace(' ', '_')}s", ()), *getattr(registry, "lazy_parsers", ())})
        raise UnknownChoiceError.of(kind, name, known) from None
    except ImportError as error:
        raise MissingDependencyError(f"vLLM's {kind} {name!r} cannot be imported: {error}.") from error


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
