"""Chat completions on the wire."""

import json
from collections.abc import Sequence
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import (
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall, Function
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from chancellor.engines import Delta, GenerationRequest, TokenLogprob
from chancellor.server.forms import Answers, Form, event, finite, usage_of
from chancellor.server.options import ServeOptions
from chancellor.server.requests import ChatCompletionRequest
from chancellor.server.translate import chat_requests, conversation

__all__ = ["ChatForm"]


class ChatForm(Form):
    """Chat completions, whole or in chunks."""

    prefix, kind = "chatcmpl", "chat.completion.chunk"

    def __init__(self, asked: ChatCompletionRequest) -> None:
        super().__init__()
        self._asked = asked
        self._before = self._after = ""
        self._more: dict[str, Any] = {"usage": None} if asked.usage_wanted else {}
        """In each chunk, as OpenAI's servers send it where the last one has the usage."""

    def routed(self) -> list[dict[str, Any]]:
        return conversation(self._asked.messages)

    def asked_text(self) -> Any:
        return self.routed()

    def requests(self, options: ServeOptions) -> list[GenerationRequest]:
        return chat_requests(self._asked, options)

    def answered_by(self, model: str) -> None:
        super().answered_by(model)
        self._before = self._head() + '"choices": [{"index": '
        usage = ', "usage": null' if self._more else ""
        self._after = f'}}, "logprobs": null, "finish_reason": null}}]{usage}}}\n\n'

    def whole(self, answers: Answers) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=[self._choice(index, deltas) for index, deltas in enumerate(answers)],
            usage=usage_of([deltas[-1] for deltas in answers]),
        )

    def opening(self, index: int) -> bytes:
        return self._chunk(index, ChoiceDelta(role="assistant", content=""))

    def piece(self, index: int, delta: Delta) -> bytes:
        if delta.finish_reason is None and not (delta.reasoning or delta.tool_calls or delta.logprobs):
            if not delta.text:  # half a character, or what may become a stop text
                return b""
            made = f'{self._before}{index}, "delta": {{"content": {json.dumps(delta.text)}{self._after}'
            return made.encode()
        changes: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            changes["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            changes["tool_calls"] = [
                ChoiceDeltaToolCall(
                    index=piece.index,
                    **({"id": piece.id, "type": "function"} if piece.id else {}),
                    function=ChoiceDeltaToolCallFunction(
                        arguments=piece.arguments, **({"name": piece.name} if piece.name else {})
                    ),
                )
                for piece in delta.tool_calls
            ]
        logprobs = ChunkLogprobs(content=self._logprobs(delta.logprobs)) if delta.logprobs else None
        return self._chunk(index, ChoiceDelta(**changes), delta.finish_reason, logprobs)

    def ending(self, usage: CompletionUsage | None, more: dict[str, Any] | None) -> bytes:
        fields = {"choices": []} if usage is None else {"choices": [], "usage": usage}
        return event(self._completion(**fields), more)

    def _chunk(
        self, index: int, delta: ChoiceDelta, finish_reason: Any = None, logprobs: ChunkLogprobs | None = None
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return event(self._completion(choices=[choice], **self._more))

    def _completion(self, **fields: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, **fields
        )

    def _choice(self, index: int, deltas: Sequence[Delta]) -> Choice:
        calls = _calls(deltas)
        text = "".join(delta.text for delta in deltas)
        reasoning = "".join(delta.reasoning for delta in deltas)
        logprobs = [one for delta in deltas for one in delta.logprobs]
        message = ChatCompletionMessage(
            role="assistant",
            content=None if calls and not text else text,
            refusal=None,
            **({"tool_calls": calls} if calls else {}),
            **({"reasoning_content": reasoning} if reasoning else {}),
        )
        return Choice(
            index=index,
            message=message,
            finish_reason=deltas[-1].finish_reason or "stop",
            logprobs=ChoiceLogprobs(content=self._logprobs(logprobs)) if logprobs else None,
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
        most = self._asked.top_logprobs or 0  # engines give the token itself as well, where it is not among them
        return [
            ChatCompletionTokenLogprob(
                token=one.token,
                logprob=finite(one.logprob),
                bytes=_bytes(one.token),
                top_logprobs=[
                    TopLogprob(token=text, logprob=finite(value), bytes=_bytes(text))
                    for text, value in one.top_tokens[:most]
                ],
            )
            for one in tokens
        ]


def _calls(deltas: Sequence[Delta]) -> list[Any]:
    calls: dict[int, ChatCompletionMessageFunctionToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        call = calls.get(piece.index)
        if call is None:
            function = Function(name="", arguments="")
            call = calls[piece.index] = ChatCompletionMessageFunctionToolCall(id="", function=function, type="function")
        call.id = call.id or piece.id or ""
        call.function.name = call.function.name or piece.name or ""
        call.function.arguments += piece.arguments
    return list(calls.values())


def _bytes(token: str) -> list[int] | None:
    """Return a token's bytes; None for a part of a character, which no text has."""
    return None if "\ufffd" in token else list(token.encode())
