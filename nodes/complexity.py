"""The first node: how hard is the question?"""

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig

from chancellor.analyzers import Analyzer, analyzer_of
from chancellor.conversation import messages_in
from chancellor.nodes.node import Node
from chancellor.nodes.turnstile import turnstile
from chancellor.routing import complexity_of

__all__ = ["complexity_node"]


def complexity_node(analyzer: str | Analyzer = "rules") -> Node:
    """Make the node that writes `complexity`.

    Args:
        analyzer: a name of `chancellor.analyzers`, or a function from the text of the work to its complexity: the
            newest question, or what a short "yes, go on" approves.

    Raises:
        UnknownChoiceError: no analyzer has this name.
    """
    analyze = analyzer_of(analyzer) if isinstance(analyzer, str) else analyzer

    def run(state: Mapping[str, Any], _: RunnableConfig | None) -> dict[str, Any]:
        return {"complexity": complexity_of(messages_in(state), analyze)}

    async def arun(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        await turnstile()
        return run(state, config)

    return Node("analyze_complexity", run, arun)
