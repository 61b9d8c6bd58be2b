"""The Chancellor inside of LangChain agents: each call of the model goes to the one that fits."""

import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from chancellor.analyzers import Analyzer, analyzer_of
from chancellor.catalog import Catalog
from chancellor.chat import ChatModels
from chancellor.chat.inherited import inheriting, settings_of
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

_REMEMBERED: Final = 64
"""Failed calls: as many may be made again at a time."""


class TrinityMiddleware(AgentMiddleware[Any, Any]):
    """Routes each call of an agent's model: `create_agent(model=..., middleware=[TrinityMiddleware()])`.

    The agent's own model stands in for none of the catalog's; it only has to be given. The work is judged by what the
    user wrote, a model that has called tools goes on with their results, and the decision is in the answer's
    `response_metadata["decision"]`.

    How the model generates is said by the first of these that says it: `model_settings` of the request, the run's
    `Context`, the model's own settings, those of the agent's own model where that is a ChatVLLM. The latter three go
    into (a copy of) the model, so that fallbacks inside of this middleware keep settings of their own.

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
        self._failed: dict[tuple[Any, ...], weakref.ref[Any]] = {}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        with self._remembering(request) as fallback:
            if fallback:
                return handler(request)
            routed, decision = self._routed(request)
            return self._noted(handler(routed), decision)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        with self._remembering(request) as fallback:
            if fallback:
                return await handler(request)
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
        own, asked = settings_of(request.model), asked_of(context)
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
        return request.override(model=inheriting(model, own, asked)), {**decision, "complexity": complexity}

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
    def _remembering(self, request: ModelRequest[Any]) -> Iterator[bool]:
        """Say whether somebody outside asks another model, as this call of the agent's has failed; note failures."""
        step = _step_of(request)
        before = self._failed.get(step) if step is not None else None
        failed = before() if before is not None else None
        fallback = failed is not None and failed is not request.model
        try:
            yield fallback
        except Exception:
            if step is not None and not fallback:
                self._failed[step] = weakref.ref(request.model)
                while len(self._failed) > _REMEMBERED:
                    self._failed.pop(next(iter(self._failed)), None)
            raise
        if step is not None:  # an answer is there: whoever asks next does so for a reason of its own
            self._failed.pop(step, None)


def _step_of(request: ModelRequest[Any]) -> tuple[Any, ...] | None:
    """Return what all requests of one step of an agent share, and no others do: names, which keep nothing alive."""
    info = getattr(request.runtime, "execution_info", None)
    return None if info is None else (info.run_id, info.task_id, info.node_attempt)
