"""From a call of the chat model to a request of an engine's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Final

from langchain_core.messages import BaseMessage
from pydantic import TypeAdapter, ValidationError

from chancellor.chat.messages import to_engine
from chancellor.chat.options import check_names, choice_of, guide_of, tools_of
from chancellor.chat.settings import PARAMETERS, ChatSettings
from chancellor.context import explain
from chancellor.engines import Delta, GenerationRequest
from chancellor.engines.answers.schemas import tight
from chancellor.errors import InvalidInputError

__all__ = ["request_of", "shorter"]

_PLAIN: Final = tuple(name for name in PARAMETERS if name not in ("top_k", "logit_bias"))
_OPTIONS: Final = {
    *PARAMETERS,
    *("model", "stop", "logprobs", "top_logprobs", "timeout", "tools", "tool_choice", "parallel_tool_calls"),
    *("strict", "response_format", "structured_outputs", "ls_structured_output_format", "stream", "stream_usage"),
}


def request_of(
    model: ChatSettings,
    messages: list[BaseMessage],
    stop: Sequence[str] | str | None,
    options: Mapping[str, Any],
    *,
    stream: bool,
) -> GenerationRequest:
    """Return what to ask the engine: the options of the call, and the fields of the model for those that it has not.

    Raises:
        InvalidInputError: an option is unknown, or out of range.
        UnknownChoiceError: the tool choice is none of the tools.
    """
    if unknown := options.keys() - _OPTIONS:
        raise InvalidInputError(
            f"A call takes no {', '.join(sorted(unknown))}.", hint=f"It takes: {', '.join(sorted(_OPTIONS))}."
        )
    options = {**options, "stop": [stop] if isinstance(stop, str) else stop}  # as OpenAI's servers take it

    def option(name: str) -> Any:
        if (asked := options.get(name)) is None:
            return getattr(model, name)
        try:
            return _field(type(model), name).validate_python(asked)
        except ValidationError as error:
            raise InvalidInputError(f"{name} is {asked!r}: {explain(error)}.", hint="Change it.") from error

    tools = tools_of(options.get("tools") or ())
    check_names(tools)
    return GenerationRequest(
        messages=to_engine(messages),
        stop=tuple(option("stop") or ()),
        stream=stream,
        logprobs=(option("top_logprobs") or 0) if option("logprobs") or option("top_logprobs") else None,
        top_k=max(0, option("top_k")),
        logit_bias=tuple((option("logit_bias") or {}).items()),
        tools=tuple(tools),
        tool_choice=choice_of(options.get("tool_choice"), tools),
        parallel_tool_calls=bool(options.get("parallel_tool_calls")),
        single_tool_call=options.get("parallel_tool_calls") is False,
        guide=guide_of(options.get("response_format"), options.get("structured_outputs")),
        timeout_s=option("timeout"),
        retries=model.max_retries,
        **{parameter: option(parameter) for parameter in _PLAIN},
    )


@cache
def _field(kind: type[ChatSettings], name: str) -> TypeAdapter[Any]:
    """Return what checks an option of a call as the field of the model is checked."""
    field = kind.model_fields[name]
    checked: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(checked)


def shorter(request: GenerationRequest, last: Delta) -> GenerationRequest | None:
    """Return the request once more, with limits that its answer fits into, if it was guided and cut off."""
    if last.finish_reason != "length":
        return None
    tokens = request.max_tokens
    guide = request.guide
    again = request
    if guide is not None and guide.kind == "json_schema":
        again = replace(request, guide=replace(guide, value=tight(guide.value, tokens)))
    elif request.tools and request.tool_choice not in ("auto", "none"):
        tools = []
        for tool in request.tools:
            function = tool["function"]
            parameters = tight(function.get("parameters") or {}, tokens)
            tools.append({**tool, "function": {**function, "parameters": parameters}})
        again = replace(request, tools=tuple(tools))
    return None if again == request else again  # there is nothing to shorten
