"""The second node: which model answers?"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig

from chancellor.analyzers import rules
from chancellor.catalog import Catalog, ModelSpec
from chancellor.conversation import messages_in
from chancellor.handover import checked
from chancellor.nodes.node import Node, context_of_run
from chancellor.policies import Policy
from chancellor.routing import Router, complexity_of

__all__ = ["selection_node"]


def selection_node(
    catalog: Catalog,
    policy: str | Policy | None = None,
    *,
    start_s: Callable[[ModelSpec], float | None] | None = None,
) -> Node:
    """Make the node that writes `decision`: the chosen model, and each candidate with its reason.

    In a graph without `complexity` in its state, it judges by the rules itself.

    Args:
        catalog: the models to choose from.
        policy: a name of `chancellor.policies` or a function; None takes the policy that the run's context names.
        start_s: returns how long it takes until a model can answer, e.g. an EnginePool's `start_s`, for the decision.

    Raises:
        UnknownChoiceError: no policy has this name.
    """
    router = Router(catalog, policy, start_s)

    def run(state: Mapping[str, Any], _: RunnableConfig | None) -> dict[str, Any]:
        messages = messages_in(state)
        given = state.get("complexity")
        complexity = checked(given) if given else complexity_of(messages, rules)
        return {"decision": router.decide(messages, complexity, context_of_run(), state.get("decision"))}

    async def arun(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        # It may read headers from disk.
        return run(state, config) if router.ready else await asyncio.to_thread(run, state, config)

    return Node("select_model", run, arun)
