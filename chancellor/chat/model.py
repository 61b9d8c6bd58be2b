"""A LangChain chat model over an in-process engine."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from chancellor.catalog import Catalog, ModelSpec
from chancellor.chat.messages import chunk_of, message_of, to_engine
from chancellor.chat.options import ToolLike, check_names, choice_of, guide_of, tools_of
from chancellor.chat.structured import structured_output
from chancellor.chat.substitutes import ladder_of
from chancellor.context import explain
from chancellor.engines import Delta, EnginePool, GenerationRequest, default_pool
from chancellor.engines.answers.schemas import tight
from chancellor.engines.ladder import Ladder
from chancellor.errors import InvalidInputError

__all__ = ["ChatVLLM"]

_PARAMETERS = ("temperature", "max_tokens", "top_p", "seed", "ignore_eos")
_OPTIONS = {
    *_PARAMETERS,
    *("model", "stop", "logprobs", "top_logprobs", "timeout", "tools", "tool_choice", "parallel_tool_calls"),
    *("strict", "response_format", "structured_outputs", "ls_structured_output_format", "stream", "stream_usage"),
}


class ChatVLLM(BaseChatModel):
    """A model of the catalog as a LangChain chat model; its engine starts with the first call.

    Tools and structured output are guided: whatever the model calls or answers is valid against its schema.

    Example:
        >>> ChatVLLM(model="smollm2-135m-int8", temperature=0).invoke("What is 2+2?")

    Raises:
        UnknownModelError: the catalog has no such model.
        ModelRejectedError: its Trinity score is too low.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str
    """Name in the catalog."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one answer."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Texts that end the answer; those of a call replace them."""
    logprobs: bool = False
    """Whether to report each token's log probability, in `response_metadata["logprobs"]`."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many of the likeliest tokens to report at each place."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds that an answer may take, the start of its engine included; None for as long as it takes."""
    max_retries: int = Field(default=1, ge=0)
    """How many deaths of its engine a request outlives: a new engine goes on with its answer."""
    substitute: bool = False
    """Whether another model of the catalog may answer when this one cannot be served at all."""
    streaming: bool = False
    """Stream also when invoked, for callbacks that want each token."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says: for benchmarks."""
    catalog: Catalog | None = Field(default=None, exclude=True, repr=False)
    """None loads the catalog as the command line does."""
    pool: EnginePool | None = Field(default=None, exclude=True, repr=False)
    """None uses the process's own."""

    _catalog: Catalog = PrivateAttr()
    _ladder: Ladder = PrivateAttr()
    _spec: ModelSpec = PrivateAttr()

    @model_validator(mode="after")
    def _find(self) -> Self:
        self._catalog = self.catalog if self.catalog is not None else Catalog.load()
        self._spec = self._catalog.usable(self.model)
        self._ladder = ladder_of(self._catalog, self._spec, substitute=self.substitute)
        return self

    def _resolve_model_profile(self) -> ModelProfile | None:
        catalog = self.catalog if self.catalog is not None else Catalog.load()
        limit = catalog.usable(self.model).context_window
        profile = ModelProfile(text_inputs=True, text_outputs=True, tool_calling=True, structured_output=True)
        if limit is not None:
            profile["max_input_tokens"] = limit
        return profile

    @property
    def _llm_type(self) -> str:
        return "chancellor-vllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        spec = self._spec.model_dump(mode="json", exclude={"trinity", "tier"})
        return {**spec, **{name: getattr(self, name) for name in _PARAMETERS}, "stop": self.stop}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "chancellor"
        params["ls_model_name"] = kwargs.get("model") or self.model
        return params

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call these tools; the arguments of its calls are valid against their schemas.

        Args:
            tools: functions, tools, pydantic classes, or OpenAI's dicts.
            tool_choice: "auto" (the default) leaves it to the model, "any" or a tool's name forces a call, and "none"
                forbids it.
            **kwargs: further options of a call: parallel_tool_calls, for several forced calls at once,
                response_format, temperature, ...

        Raises:
            InvalidInputError: one of the tools is none.
            UnknownChoiceError: the choice is none of the tools.
        """
        made = tools_of(tools)
        return super().bind(tools=made, tool_choice=choice_of(tool_choice, made), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,  # noqa: ARG002 - it is always strict
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a runnable whose answers are objects, valid against the schema.

        An answer that `max_tokens` cuts off is asked for once more with limits on texts and lists that it fits into
        (not when streamed).

        Args:
            schema: a pydantic class, for instances of it; a TypedDict, OpenAI's dict, or a JSON schema, for dicts.
            method: "json_schema" guides the answer, "function_calling" a call of a tool that stands for the schema,
                and "json_mode" asks for any JSON object.
            include_raw: whether to return {"raw", "parsed", "parsing_error"}.
            strict: for the sake of other models' callers.
            **kwargs: none are taken.

        Raises:
            InvalidInputError: there is no schema, or an unknown option.
        """
        if kwargs:
            raise InvalidInputError(f"with_structured_output takes no {', '.join(kwargs)}.", hint="Leave it out.")
        return structured_output(self, schema, method, include_raw=include_raw)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - nothing to report before the end
        **kwargs: Any,
    ) -> ChatResult:
        spec, request, ladder = self._request(messages, stop, stream=False, **kwargs)
        deltas = list(self._engines.generate(spec, request, ladder))
        if (again := _shorter(request, deltas[-1])) is not None:
            deltas = list(self._engines.generate(spec, again, ladder))
        return self._result(deltas)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - nothing to report before the end
        **kwargs: Any,
    ) -> ChatResult:
        spec, request, ladder = self._request(messages, stop, stream=False, **kwargs)
        deltas = [delta async for delta in self._engines.agenerate(spec, request, ladder)]
        if (again := _shorter(request, deltas[-1])) is not None:
            deltas = [delta async for delta in self._engines.agenerate(spec, again, ladder)]
        return self._result(deltas)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._request(messages, stop, stream=True, **kwargs)
        for delta in self._engines.generate(*asked):
            chunk = self._chunk(delta)
            if run_manager is not None:
                run_manager.on_llm_new_token(delta.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = self._request(messages, stop, stream=True, **kwargs)
        async with aclosing(self._engines.agenerate(*asked)) as deltas:
            async for delta in deltas:
                chunk = self._chunk(delta)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk

    @property
    def _engines(self) -> EnginePool:
        return self.pool if self.pool is not None else default_pool()

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | str | None, *, stream: bool, **kwargs: Any
    ) -> tuple[ModelSpec, GenerationRequest, Ladder]:
        if unknown := kwargs.keys() - _OPTIONS:
            raise InvalidInputError(
                f"A call takes no {', '.join(sorted(unknown))}.", hint=f"It takes: {', '.join(sorted(_OPTIONS))}."
            )

        kwargs["stop"] = [stop] if isinstance(stop, str) else stop  # as OpenAI's servers take it

        def option(name: str) -> Any:
            if (asked := kwargs.get(name)) is None:
                return getattr(self, name)
            try:
                return _field(name).validate_python(asked)
            except ValidationError as error:
                raise InvalidInputError(f"{name} is {asked!r}: {explain(error)}.", hint="Change it.") from error

        name = kwargs.get("model")
        tools = tools_of(kwargs.get("tools") or ())
        check_names(tools)
        request = GenerationRequest(
            messages=to_engine(messages),
            stop=tuple(option("stop") or ()),
            stream=stream,
            logprobs=(option("top_logprobs") or 0) if option("logprobs") or option("top_logprobs") else None,
            tools=tuple(tools),
            tool_choice=choice_of(kwargs.get("tool_choice"), tools),
            parallel_tool_calls=bool(kwargs.get("parallel_tool_calls")),
            guide=guide_of(kwargs.get("response_format"), kwargs.get("structured_outputs")),
            timeout_s=option("timeout"),
            retries=self.max_retries,
            **{parameter: option(parameter) for parameter in _PARAMETERS},
        )
        if not name or name == self._spec.name:
            return self._spec, request, self._ladder
        spec = self._catalog.usable(name)
        return spec, request, ladder_of(self._catalog, spec, substitute=self.substitute)

    def _result(self, deltas: list[Delta]) -> ChatResult:
        message = message_of(deltas, self._metadata(deltas[-1]))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, delta: Delta) -> ChatGenerationChunk:
        metadata = None if delta.finish_reason is None else self._metadata(delta)
        return ChatGenerationChunk(message=chunk_of(delta, metadata))

    def _metadata(self, last: Delta) -> dict[str, Any]:
        return {
            "model_name": last.model or self.model,
            "model_provider": "chancellor",
            "finish_reason": last.finish_reason,
            "engine": last.engine,
            "quantization": last.quantization,
            "inference_time_s": last.inference_time_s,
            "time_to_first_token_s": last.time_to_first_token_s,
            "queue_time_s": last.queue_time_s,
            **({"fallbacks": [dict(step) for step in last.fallbacks]} if last.fallbacks else {}),
        }


@cache
def _field(name: str) -> TypeAdapter[Any]:
    """Return what checks an option of a call as the field of the model is checked."""
    field = ChatVLLM.model_fields[name]
    checked: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(checked)


def _shorter(request: GenerationRequest, last: Delta) -> GenerationRequest | None:
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
