"""The Chancellor inside of LangChain agents: each call of the model goes to the one that fits."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from chancellor.analyzers import Analyzer, analyzer_of
from chancellor.catalog import Catalog
from chancellor.chat import ChatModels
from chancellor.context import Context
from chancellor.engines import default_pool
from chancellor.errors import MissingDependencyError, UnknownModelError
from chancellor.policies import Policy
from chancellor.routing import Router, task_of

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError:
    raise MissingDependencyError.of("langchain", "agents") from None

__all__ = ["TrinityMiddleware"]


class TrinityMiddleware(AgentMiddleware[Any, Any]):
    """Routes each call of an agent's model: `create_agent(model=..., middleware=[TrinityMiddleware()])`.

    The agent's own model stands in for none of the catalog's; it only has to be given. The work is judged by what the
    user wrote, a model that has called tools goes on with their results, and the decision is in the answer's
    `response_metadata["decision"]`.
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

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        routed, decision = self._routed(request)
        return self._noted(handler(routed), decision)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        if self._router.ready:
            routed, decision = self._routed(request)
        else:
            import asyncio

            routed, decision = await asyncio.to_thread(self._routed, request)  # it reads headers from disk
        return self._noted(await handler(routed), decision)

    def _routed(self, request: ModelRequest[Any]) -> tuple[ModelRequest[Any], dict[str, Any]]:
        context = Context.of(getattr(request.runtime, "context", None))
        complexity = self._analyze(task_of(request.messages))
        told = request.messages if request.system_message is None else [request.system_message, *request.messages]
        # The agent's own prompt is what its models are told, not that of a context of ours.
        counted = context.model_copy(update={"system_prompt": None})
        decision = self._router.decide(told, complexity, counted, tools=request.tools)
        by_name = getattr(self._models, "named", None) if context.model is not None else None
        try:
            model = self._models[decision["model"]] if by_name is None else by_name(decision["model"])
        except KeyError:
            raise UnknownModelError(
                f"The selection chose {decision['model']!r}, for which there is no chat model.",
                hint=f"`models` has: {', '.join(self._models) or 'none'}.",
            ) from None
        return request.override(model=model), {**decision, "complexity": complexity}

    def _noted(self, response: ModelResponse[Any], decision: dict[str, Any]) -> ModelResponse[Any]:
        for message in response.result:
            if isinstance(message, AIMessage):
                noted = message.response_metadata
                noted["decision"] = decision
                # By this the model is known again when its tools' results come; a substitute has noted its own.
                if noted.get("model_name") not in self._router.catalog:
                    noted["model_name"] = decision["model"]
        return response
