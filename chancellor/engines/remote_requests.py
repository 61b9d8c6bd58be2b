"""From our requests to OpenAI's, and from its answers to our deltas."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, GenerationRequest, Guide, TokenLogprob, ToolCallPiece
from chancellor.errors import InvalidInputError, UpstreamError

__all__ = ["UNKNOWN_ID", "Answer", "body_of"]

UNKNOWN_ID: Final = -1
"""Stands for a token's id: servers tell its text only."""


def body_of(request: GenerationRequest, spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request to the entry's server.

    What the entry has as `extra_body` among its further arguments wins. Of the sampling parameters, those that a server
    may have defaults of its own for are sent always: its answers are to be those of an engine here.

    Raises:
        InvalidInputError: the raw prompt is empty.
    """
    body: dict[str, Any] = {
        "model": spec.source,
        "max_tokens": request.max_tokens,  # not max_completion_tokens: all servers know it, but OpenAI's newest models
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
    }
    if request.stream:
        body["stream_options"] = {"include_usage": True}
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.top_k:  # this and the next two are vLLM's, and unknown to OpenAI's own servers
        body["top_k"] = request.top_k
    if request.min_p:
        body["min_p"] = request.min_p
    if request.repetition_penalty != 1.0:
        body["repetition_penalty"] = request.repetition_penalty
    if request.presence_penalty:
        body["presence_penalty"] = request.presence_penalty
    if request.frequency_penalty:
        body["frequency_penalty"] = request.frequency_penalty
    if request.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias}
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.guide is not None:
        body |= _guided(request.guide)
    if request.prompt is not None:
        if not request.prompt:
            raise InvalidInputError("The prompt is empty.", hint="Give some text, or token ids, to be continued.")
        path = "/completions"
        body["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        if request.logprobs is not None:
            body["logprobs"] = request.logprobs
    else:
        path = "/chat/completions"
        body["messages"] = _shown(request.messages)
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.tools:
            body |= _tools(request)
    return path, body | spec.engine.vllm.get("extra_body", {})


def _shown(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the thoughts of earlier turns: hardly a template shows them, and some servers refuse the field."""
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [
        {name: value for name, value in message.items() if place > last or name != "reasoning_content"}
        for place, message in enumerate(messages)
    ]


def _guided(guide: Guide) -> dict[str, Any]:
    if guide.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if guide.kind == "json_schema":
        schema = {"name": "answer", "schema": guide.value, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    value = list(guide.value) if guide.kind == "choice" else guide.value
    return {"structured_outputs": {guide.kind: value}}  # vLLM's own


def _tools(request: GenerationRequest) -> dict[str, Any]:
    choice: Any = request.tool_choice
    tools = {"tools": list(request.tools), "tool_choice": choice}
    if choice in ("auto", "none"):
        return tools | ({"parallel_tool_calls": False} if request.single_tool_call else {})
    if choice != "required":
        tools["tool_choice"] = {"type": "function", "function": {"name": choice}}
    return {**tools, "parallel_tool_calls": request.parallel_tool_calls}


class Answer:
    """Reads one answer: chunks of a stream as they come, or the whole of it."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._called: set[int] = set()
        self._logprobs: list[TokenLogprob] = []

    @property
    def ended(self) -> bool:
        """Whether all of it has come, but maybe for its figures. A server that shuts down aborts its answers."""
        return self.finish_reason not in (None, "abort", "error")

    def take(self, piece: Any) -> Delta | None:
        """Return what is new in a piece, or None.

        Raises:
            UpstreamError: it is not of OpenAI's form.
        """
        try:
            return self._take(piece)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UpstreamError(
                "The server answered something that is not of OpenAI's form.",
                hint="Check base_url under [models.engine]: is it a server that speaks OpenAI's protocol? "
                f"It answered: {str(piece)[:200]!r}",
            ) from error

    def figures(self) -> dict[str, Any]:
        """Return the fields of the last delta that the server has told."""
        cached = self._usage.get("prompt_tokens_details") or {}
        reason = self.finish_reason
        return {
            "finish_reason": "tool_calls" if self._called and reason == "stop" else reason,
            "input_tokens": self._usage.get("prompt_tokens"),
            "output_tokens": self._usage.get("completion_tokens"),
            "cached_tokens": cached.get("cached_tokens"),
        }

    def _take(self, piece: Any) -> Delta | None:
        self._usage = piece.get("usage") or self._usage
        choices = piece["choices"]
        if not choices:  # the chunk with the usage
            return None
        choice = choices[0]
        part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        text = part.get("content") or part.get("refusal") or ""
        reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
        calls = tuple(self._calls(part.get("tool_calls") or ()))
        self._logprobs += _logprobs(choice.get("logprobs") or {})
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if not isinstance(text, str) or not isinstance(reasoning, str):
            raise TypeError
        if not (text or reasoning or calls or (self._logprobs and self.finish_reason)):
            return None  # log probabilities wait for their text: a request of which no text has come is asked again
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Delta(text, (), logprobs, reasoning, calls)

    def _calls(self, calls: Any) -> Iterator[ToolCallPiece]:
        for place, call in enumerate(calls):
            index, function = call.get("index"), call.get("function") or {}
            index = place if index is None else int(index)
            arguments = function.get("arguments") or ""
            if index in self._called:
                yield ToolCallPiece(index, arguments=arguments)
                continue
            self._called.add(index)
            yield ToolCallPiece(index, call.get("id") or f"call_{uuid.uuid4().hex}", function["name"], arguments)


def _logprobs(given: Mapping[str, Any]) -> list[TokenLogprob]:
    """Return log probabilities as a chat has them, or a raw completion."""
    if (content := given.get("content")) is not None:
        steps = [
            (one["token"], one["logprob"], [(top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()])
            for one in content
        ]
    else:
        tokens, values = given.get("tokens") or (), given.get("token_logprobs") or ()
        tops = given.get("top_logprobs") or [None] * len(tokens)
        steps = [
            (token, value, list((top or {}).items())) for token, value, top in zip(tokens, values, tops, strict=True)
        ]
    return [TokenLogprob(UNKNOWN_ID, token, value, {}, _ranked(token, value, top)) for token, value, top in steps]


def _ranked(token: str, value: float, top: list[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Put the chosen token among the likeliest, as engines here do."""
    every = top if token in dict(top) else [*top, (token, value)]
    return tuple(sorted(every, key=lambda one: -one[1]))
