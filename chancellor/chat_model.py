"""A LangChain chat model over an in-process engine."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import Delta, EnginePool, GenerationRequest, default_pool
from chancellor.errors import InvalidInputError

__all__ = ["ChatModels", "ChatVLLM"]

_PARAMETERS = ("temperature", "max_tokens", "top_p", "seed", "ignore_eos")


class ChatVLLM(BaseChatModel):
    """A model of the catalog as a LangChain chat model; its engine starts with the first call.

    Example:
        >>> ChatVLLM(model="smollm2-135m-int8", temperature=0).invoke("What is 2+2?")

    Raises:
        UnknownModelError: the catalog has no such model.
        ModelRejectedError: its Trinity score is too low.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str
    """Name in the catalog."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one answer."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: list[str] | None = None
    """Texts that end the answer; those of a call replace them."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says: for benchmarks."""
    catalog: Catalog | None = Field(default=None, exclude=True, repr=False)
    """None loads the catalog as the command line does."""
    pool: EnginePool | None = Field(default=None, exclude=True, repr=False)
    """None uses the process's own."""

    _spec: ModelSpec = PrivateAttr()

    @model_validator(mode="after")
    def _find(self) -> Self:
        catalog = self.catalog if self.catalog is not None else Catalog.load()
        self._spec = catalog.usable(self.model)
        return self

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
        params["ls_model_name"] = self.model
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - nothing to report before the end
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, stream=False, **kwargs)
        return self._result(list(self._engines.generate(self._spec, request)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - nothing to report before the end
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, stream=False, **kwargs)
        return self._result([delta async for delta in self._engines.agenerate(self._spec, request)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for delta in self._engines.generate(self._spec, self._request(messages, stop, stream=True, **kwargs)):
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
        request = self._request(messages, stop, stream=True, **kwargs)
        async with aclosing(self._engines.agenerate(self._spec, request)) as deltas:
            async for delta in deltas:
                chunk = self._chunk(delta)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk

    @property
    def _engines(self) -> EnginePool:
        return self.pool if self.pool is not None else default_pool()

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, *, stream: bool, **kwargs: Any
    ) -> GenerationRequest:
        converted = convert_to_openai_messages(messages, text_format="string")
        for message in converted:
            if not isinstance(message.get("content"), str):
                raise InvalidInputError(
                    f"A {message['role']} message holds something other than text.",
                    hint="The models here read text only: leave images and files out.",
                )
        return GenerationRequest(
            messages=converted,
            stop=tuple(stop if stop is not None else self.stop or ()),
            stream=stream,
            **{name: kwargs[name] if kwargs.get(name) is not None else getattr(self, name) for name in _PARAMETERS},
        )

    def _result(self, deltas: list[Delta]) -> ChatResult:
        message = AIMessage(
            content="".join(delta.text for delta in deltas),
            usage_metadata=_usage(deltas[-1]),
            response_metadata=self._metadata(deltas[-1]),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, delta: Delta) -> ChatGenerationChunk:
        if delta.finish_reason is None:
            return ChatGenerationChunk(message=AIMessageChunk(content=delta.text))
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content=delta.text,
                usage_metadata=_usage(delta),
                response_metadata=self._metadata(delta),
                chunk_position="last",
            )
        )

    def _metadata(self, last: Delta) -> dict[str, Any]:
        return {
            "model_name": self.model,
            "model_provider": "chancellor",
            "finish_reason": last.finish_reason,
            "engine": last.engine,
            "quantization": last.quantization,
            "inference_time_s": last.inference_time_s,
            "time_to_first_token_s": last.time_to_first_token_s,
            "queue_time_s": last.queue_time_s,
        }


def _usage(last: Delta) -> UsageMetadata:
    prompt, answer = last.input_tokens or 0, last.output_tokens or 0
    usage = UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)
    if last.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=last.cached_tokens)
    return usage


class ChatModels(Mapping[str, BaseChatModel]):
    """The chat model of each entry of a catalog, made when it is first asked for."""

    def __init__(self, catalog: Catalog, *, pool: EnginePool | None = None) -> None:
        self._catalog = catalog
        self._pool = pool
        self._models: dict[str, BaseChatModel] = {}

    def __getitem__(self, name: str) -> BaseChatModel:
        if name not in self._models:
            self._models[name] = ChatVLLM(model=name, catalog=self._catalog, pool=self._pool)
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._catalog.values() if self._catalog.rejection(spec) is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
