"""A LangChain chat model over an in-process engine."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

from chancellor.catalog import ModelSpec
from chancellor.chat.messages import chunk_of, message_of
from chancellor.chat.options import ToolLike, choice_of, tools_of
from chancellor.chat.requests import request_of, shorter
from chancellor.chat.settings import ChatSettings
from chancellor.chat.structured import structured_output
from chancellor.chat.substitutes import ladder_of
from chancellor.engines import Delta, EnginePool, GenerationRequest, default_pool
from chancellor.engines.ladder import Ladder
from chancellor.errors import InvalidInputError

__all__ = ["ChatVLLM"]


class ChatVLLM(ChatSettings):
    """A model of the catalog as a LangChain chat model; its engine starts with the first call.

    Tools and structured output are guided: whatever the model calls or answers is valid against its schema.

    Example:
        >>> ChatVLLM(model="smollm2-135m-int8", temperature=0).invoke("What is 2+2?")

    Raises:
        UnknownModelError: the catalog has no such model.
        ModelRejectedError: its Trinity score is too low.
    """

    @property
    def _llm_type(self) -> str:
        return "chancellor-vllm"

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
            **kwargs: further options of a call: parallel_tool_calls (True for several forced calls at once, False for
                one at most where it is left to the model), response_format, temperature, ...

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
        if (again := shorter(request, deltas[-1])) is not None:
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
        if (again := shorter(request, deltas[-1])) is not None:
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
        spec = self._models.usable(kwargs.get("model") or self.model)
        ladder = ladder_of(self._models, spec, substitute=self.substitute)
        return spec, request_of(self, messages, stop, kwargs, stream=stream), ladder

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
