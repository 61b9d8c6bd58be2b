"""What a model is shown for a request, what binds its answer, and who reads it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from chancellor.engines.answers.calls import FirstCall, TaggedCalls, as_text, call_format
from chancellor.engines.answers.guides import json_format, structural_tag
from chancellor.engines.answers.schemas import bounded
from chancellor.engines.base import Delta, GenerationRequest, Guide
from chancellor.errors import InvalidInputError, UnknownChoiceError

__all__ = ["Plan", "Reader", "plan_of"]

_PARSERS: Final = {
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3_json",
    "<function=": "qwen3_coder",
    "<|tool_calls_section_begin|>": "kimi_k2",
}
"""What in a chat template tells which of vLLM's tool parsers reads the model's calls."""
_OWN: Final = "hermes"
"""The form that needs no parser of vLLM's."""


class Reader(Protocol):
    """Takes calls and thoughts out of an answer's text."""

    def read(self, delta: Delta) -> Delta:
        """Return the next delta as the user gets to see it."""


@dataclass(slots=True)
class Plan:
    """How a request is carried out."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """For the chat template."""
    guide: Guide | None = None
    readers: list[Reader] = field(default_factory=list)
    skip_special_tokens: bool = True

    def stop(self, request: GenerationRequest, default: Sequence[str]) -> list[str]:
        """Return what ends the answer; the default does not where a guide knows its end, and lets a "###" through."""
        return list(request.stop or (() if request.ignore_eos or self.guide is not None else default))

    def read(self, delta: Delta) -> Delta:
        """Return the delta as the user gets to see it."""
        read = delta
        for reader in self.readers:
            read = reader.read(read)
        return replace(read, token_ids=delta.token_ids) if self.readers else delta


def plan_of(
    request: GenerationRequest, tokenizer: Any, *, tool_parser: str | None = None, reasoning_parser: str | None = None
) -> Plan:
    """Plan a request.

    Args:
        request: what is asked.
        tokenizer: the model's, for its chat template.
        tool_parser: name of vLLM's parser for the model's calls; None looks at the template.
        reasoning_parser: name of vLLM's parser for the model's thoughts; None if it has none.

    Raises:
        UnknownChoiceError: the tool choice is none of the tools, or vLLM has no such parser.
        InvalidInputError: a guide and a forced call exclude each other.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    knows = re.search(r"\btools\b", template) is not None
    tools = _usable(request)
    plan = Plan(_for_template(request.messages) if knows else as_text(request.messages, tools), guide=request.guide)
    if knows and tools:
        plan.tools = list(tools)
    if reasoning_parser is not None and request.prompt is None:  # a raw prompt is continued as it stands
        from chancellor.engines.answers.vllm_parsers import VLLMReasoning

        thoughts = VLLMReasoning(reasoning_parser, tokenizer, request)
        plan.skip_special_tokens = thoughts.skip_special_tokens
        plan.readers.append(thoughts)
    if tools:
        forced = request.tool_choice != "auto"
        parser = tool_parser or next((name for mark, name in _PARSERS.items() if mark in template), _OWN)
        if forced or not knows or parser == _OWN:
            plan.guide = _guide(request, tools, forced=forced)
            plan.readers.append(TaggedCalls())
        else:
            from chancellor.engines.answers.vllm_parsers import VLLMCalls

            calls = VLLMCalls(parser, tokenizer, request)
            plan.skip_special_tokens = plan.skip_special_tokens and calls.skip_special_tokens
            plan.readers.append(calls)
            if request.single_tool_call:
                plan.readers.append(FirstCall())
    elif plan.guide is not None and plan.guide.kind == "json_schema":
        plan.guide = Guide("json_schema", bounded(plan.guide.value))
    return plan


def _usable(request: GenerationRequest) -> Sequence[dict[str, Any]]:
    """Return the tools that this request may call."""
    names = [tool["function"]["name"] for tool in request.tools]
    if request.tool_choice in ("auto", "required"):
        return request.tools
    if request.tool_choice == "none":
        return ()
    if request.tool_choice not in names:
        raise UnknownChoiceError.of("tool", request.tool_choice, names)
    return [tool for tool in request.tools if tool["function"]["name"] == request.tool_choice]


def _guide(request: GenerationRequest, tools: Sequence[dict[str, Any]], *, forced: bool) -> Guide:
    parallel = request.parallel_tool_calls if forced else not request.single_tool_call
    if request.guide is None:
        return structural_tag(call_format(tools, forced=forced, parallel=parallel))
    if forced or request.guide.kind not in ("json_schema", "json_object"):
        raise InvalidInputError(
            "A forced tool call leaves no room for an answer of another form."
            if forced
            else f"Tools go together with an answer that is JSON, and not with a guide by {request.guide.kind}.",
            hint="Leave out tool_choice, or the response format.",
        )
    # Either the answer, or calls: as with OpenAI's response_format beside tools.
    schema = bounded(request.guide.value) if request.guide.kind == "json_schema" else {"type": "object"}
    calls = call_format(tools, forced=True, parallel=parallel)
    return structural_tag({"type": "or", "elements": [json_format(schema), calls]})


def _for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as templates want them: calls with objects as arguments, and no content that is None."""
    made = []
    for message in messages:
        copy = dict(message)
        if "reasoning_content" in copy:
            copy["reasoning"] = copy["reasoning_content"]  # which of the two a template reads differs
        if calls := copy.get("tool_calls"):
            copy["content"] = copy.get("content") or ""
            copy["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
                for call in calls
            ]
        made.append(copy)
    return made


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments
