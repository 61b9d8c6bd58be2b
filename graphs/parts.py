"""The nodes that a graph is put together from, ours or somebody else's."""

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable

from chancellor.context import Context
from chancellor.errors import InvalidInputError
from chancellor.nodes import Node

__all__ = ["part"]

_MAKERS: Final = {
    "analyze": "complexity_node(ANALYZER)",
    "select": "selection_node(CATALOG, POLICY)",
    "generate": 'generation_node({"NAME": MODEL})',
    "record": "metrics_node([RECORDER])",
}


def part(role: str, given: Any, context_schema: Any) -> Any:
    """Return what stands for a node in the graph.

    Args:
        role: which argument of `create_chancellor` it was given as.
        given: the node.
        context_schema: of the graph.

    Raises:
        InvalidInputError: it is no node.
    """
    if isinstance(given, Node):
        ours = isinstance(context_schema, type) and issubclass(context_schema, Context)
        return given.within(context_schema) if ours else given
    # LangGraph takes a dict for several nodes at once, and fails when it runs them.
    wrong = isinstance(given, Mapping | BaseLanguageModel) or not (callable(given) or isinstance(given, Runnable))
    if wrong:
        raise InvalidInputError(
            f"{role} is {str(given)[:200]!r}, which is no node.",
            hint=f"Pass a callable that takes the state and returns a part of it; {_MAKERS[role]} makes one.",
        )
    return given
