"""From callers' requests to those of engines."""

from collections.abc import Iterable, Mapping
from typing import Any

from chancellor.chat.options import check_names, choice_of, guide_of, tools_of
from chancellor.engines import GenerationRequest
from chancellor.errors import InvalidInputError
from chancellor.server.options import ServeOptions
from chancellor.server.requests import ChatCompletionRequest, CompletionRequest

__all__ = ["chat_requests", "completion_requests", "conversation"]


def chat_requests(asked: ChatCompletionRequest, options: ServeOptions) -> list[GenerationRequest]:
    """Return what to ask the engine: `n` requests.

    Raises:
        InvalidInputError: something in it cannot be done.
        UnknownChoiceError: the tool choice is none of the tools.
    """
    tools, choice = _tools(asked)
    shared: dict[str, Any] = {
        "messages": conversation(asked.messages),
        "logprobs": (asked.top_logprobs or 0) if asked.logprobs else None,
        "tools": tuple(tools),
        "tool_choice": choice,
        "parallel_tool_calls": bool(asked.parallel_tool_calls),
        "single_tool_call": asked.parallel_tool_calls is False,
        "guide": guide_of(asked.response_format, asked.structured_outputs),
    }
    tokens = asked.max_completion_tokens or asked.max_tokens
    return [GenerationRequest(**shared, **one) for one in _answers(asked, tokens, options, 1)]


def completion_requests(asked: CompletionRequest, options: ServeOptions) -> list[GenerationRequest]:
    """Return what to ask the engine: for each prompt `n` requests.

    Raises:
        InvalidInputError: it asks for too much.
    """
    prompts = asked.prompts()
    answers = _answers(asked, asked.max_tokens, options, len(prompts))
    return [GenerationRequest(prompt=prompt, logprobs=asked.logprobs, **one) for prompt in prompts for one in answers]


def _tools(asked: ChatCompletionRequest) -> tuple[list[dict[str, Any]], str]:
    tools, choice = tools_of([dict(tool) for tool in asked.tools or ()]), asked.tool_choice
    check_names(tools)
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        allowed = choice["allowed_tools"]
        names = {choice_of(one, tools) for one in allowed["tools"]}
        return [tool for tool in tools if tool["function"]["name"] in names], allowed["mode"]
    return tools, choice_of(choice, tools)


def _answers(
    asked: ChatCompletionRequest | CompletionRequest, tokens: int | None, options: ServeOptions, prompts: int
) -> list[dict[str, Any]]:
    count = asked.n or 1
    if count * prompts > options.max_choices:
        raise InvalidInputError(
            f"The request asks for {count * prompts} answers; {options.max_choices} are the most.",
            hint="Ask for fewer.",
        )
    if tokens is not None and tokens > options.max_tokens_limit:
        raise InvalidInputError(
            f"The request asks for {tokens:,} tokens; {options.max_tokens_limit:,} are the most.", hint="Ask for fewer."
        )
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k and max(0, asked.top_k),
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
    }
    shared: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    shared |= {
        "max_tokens": tokens or options.default_max_tokens,
        "stop": tuple(asked.stop or ()),
        "logit_bias": tuple((int(token), bias) for token, bias in (asked.logit_bias or {}).items()),
        "ignore_eos": asked.ignore_eos,
        "stream": bool(asked.stream),
        "timeout_s": options.timeout_s,
        "retries": 1,
    }
    # Answers with the same seed would be the same.
    seeds = [None if asked.seed is None else _int64(asked.seed + number) for number in range(count)]
    return [{**shared, "seed": seed} for seed in seeds]


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def conversation(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as engines take them: texts, calls and their results.

    Raises:
        InvalidInputError: a message holds something other than text.
    """
    return [_message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    if content is None:
        content = message.get("refusal")
    made: dict[str, Any] = {"role": "system" if role == "developer" else role}
    if content is not None and not isinstance(content, str):
        content = "\n".join(_text(role, part) for part in content)
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [dict(call) for call in calls]
        if unknown := next((call for call in made["tool_calls"] if call["type"] != "function"), None):
            raise InvalidInputError(f"A call of type {unknown['type']!r} cannot be read.", hint="Use functions.")
    elif content is None:
        raise InvalidInputError(f"A message of role {role!r} is empty.", hint="Give it a content.")
    made["content"] = content
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None:
            made[name] = message[name]
    if thoughts := message.get("reasoning_content") or message.get("reasoning"):
        made["reasoning_content"] = thoughts  # as vLLM's server: the chat template says which of them the model sees
    return made


def _text(role: str, part: Mapping[str, Any]) -> str:
    if (text := part.get("text", part.get("refusal"))) is None:
        raise InvalidInputError(
            f"A message of role {role!r} holds something other than text ({part.get('type')}).",
            hint="The models here read text only: leave images, audio and files out.",
        )
    return str(text)
