"""The Chancellor inside of LangChain agents: each call of the model goes to the one that fits."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from chancellor.analyzers import Analyzer, analyzer_of
from chancellor.catalog import Catalog
from chancellor.chat import ChatModels, ChatVLLM
from chancellor.context import Context, asked_of
from chancellor.engines import default_pool
from chancellor.errors import MissingDependencyError, UnknownModelError
from chancellor.policies import Policy
from chancellor.routing import Router, complexity_of

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError:
    raise MissingDependencyError.of("langchain", "agents") from None

__all__ = ["TrinityMiddleware"]

_KNOWN_TO_ALL: Final = (
    *("temperature", "max_tokens", "top_p", "seed", "stop", "logprobs", "top_logprobs", "timeout"),
    *("presence_penalty", "frequency_penalty"),
)
_OUR_OWN: Final = ("top_k", "min_p", "repetition_penalty")
"""Settings of a ChatVLLM that are no others'."""
_REMEMBERED: Final = 64
"""Failed calls: as many may be made again at a time."""


class TrinityMiddleware(AgentMiddleware[Any, Any]):
    """Routes each call of an agent's model: `create_agent(model=..., middleware=[TrinityMiddleware()])`.

    The agent's own model stands in for none of the catalog's; it only has to be given. The work is judged by what the
    user wrote, a model that has called tools goes on with their results, and the decision is in the answer's
    `response_metadata["decision"]`.

    How the model generates is said by the first of these that says it: `model_settings` of the request, the run's
    `Context`, the model's own settings, those of the agent's own model where that is a ChatVLLM.

    Where a call has failed and is made again with another model, as ModelFallbackMiddleware does outside of this one,
    that model answers it, and no decision is noted.
    """

    def __init__(
        self,
        catalog: Catalog | str | Path | None = None,
        *,
        analyzer: str | Analyzer = "rules",
        policy: str | Policy | None = None,
        models: Mapping[str, BaseChatModel] | None = None,
    ) -> None:
        """Prepare the routing; no engine starts before the first call.

        Args:
            catalog: the models, or the path of a catalog file; None finds one as the command line does.
            analyzer: a name of `chancellor.analyzers`, or a function from a text to its complexity.
            policy: a name of `chancellor.policies` or a function; None takes the one that the run's context names.
            models: a chat model for each name of the catalog; None makes them.

        Raises:
            UnknownChoiceError: no analyzer or policy has this name.
        """
        super().__init__()
        known = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
        self._analyze = analyzer_of(analyzer) if isinstance(analyzer, str) else analyzer
        self._router = Router(known, policy, lambda spec: default_pool().start_s(spec))
        self._models = models if models is not None else ChatModels(known)
        # By the state of the agent's step, which all requests of one call share: nothing else of a call outlives it.
        self._failed: deque[tuple[Any, Any]] = deque(maxlen=_REMEMBERED)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        if self._is_fallback(request):
            return handler(request)
        with self._noting_failure(request):
            routed, decision = self._routed(request)
            return self._noted(handler(routed), decision)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        if self._is_fallback(request):
            return await handler(request)
        with self._noting_failure(request):
            if self._router.ready:
                routed, decision = self._routed(request)
            else:
                import asyncio

                routed, decision = await asyncio.to_thread(self._routed, request)  # it reads headers from disk
            return self._noted(await handler(routed), decision)

    def _routed(self, request: ModelRequest[Any]) -> tuple[ModelRequest[Any], dict[str, Any]]:
        context = Context.of(getattr(request.runtime, "context", None))
        complexity = complexity_of(request.messages, self._analyze)
        messages = request.messages if request.system_message is None else [request.system_message, *request.messages]
        own, asked = _settings_of(request.model), asked_of(context)
        # The agent's own prompt is what its models are told, not that of a context of ours.
        counted: dict[str, Any] = {"system_prompt": None}
        if isinstance(most := (own | asked | request.model_settings).get("max_tokens"), int):
            counted["max_tokens"] = most
        decision = self._router.decide(messages, complexity, context.model_copy(update=counted), tools=request.tools)
        by_name = getattr(self._models, "named", None) if context.model is not None else None
        try:
            model = self._models[decision["model"]] if by_name is None else by_name(decision["model"])
        except KeyError:
            raise UnknownModelError(
                f"The selection chose {decision['model']!r}, for which there is no chat model.",
                hint=f"`models` has: {', '.join(self._models) or 'none'}.",
            ) from None
        kept = own.keys() - getattr(model, "model_fields_set", set[str]())
        kept -= set() if isinstance(model, ChatVLLM) else set(_OUR_OWN)
        told = {name: own[name] for name in kept} | asked
        settings = {name: value for name, value in told.items() if value is not None} | request.model_settings
        return request.override(model=model, model_settings=settings), {**decision, "complexity": complexity}

    def _noted(self, response: ModelResponse[Any], decision: dict[str, Any]) -> ModelResponse[Any]:
        for message in response.result:
            if isinstance(message, AIMessage):
                noted = message.response_metadata
                noted["decision"] = decision
                # By this the model is known again when its tools' results come; a substitute has noted its own.
                if noted.get("model_name") not in self._router.catalog:
                    noted["model_name"] = decision["model"]
        return response

    @contextmanager
    def _noting_failure(self, request: ModelRequest[Any]) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failed.append((request.state, request.model))
            raise

    def _is_fallback(self, request: ModelRequest[Any]) -> bool:
        """Return whether somebody outside asks another model, as this call of the agent's has failed."""
        failed = tuple(self._failed) if self._failed else ()
        return any(state is request.state and model is not request.model for state, model in failed)


def _settings_of(model: Any) -> dict[str, Any]:
    """Return what an agent's own model was told about how to generate."""
    if not isinstance(model, ChatVLLM):
        return {}
    return {name: getattr(model, name) for name in (*_KNOWN_TO_ALL, *_OUR_OWN) if name in model.model_fields_set}
