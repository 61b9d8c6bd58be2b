"""Put the four nodes together."""

from pathlib import Path
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from chancellor.catalog import Catalog, ModelSpec
from chancellor.chat import ChatModels
from chancellor.context import Context
from chancellor.engines import default_pool
from chancellor.graphs.parts import part
from chancellor.nodes import complexity_node, generation_node, metrics_node, selection_node
from chancellor.state import State

__all__ = ["create_chancellor"]


def create_chancellor(
    catalog: Catalog | str | Path | None = None,
    *,
    analyze: Any = None,
    select: Any = None,
    generate: Any = None,
    record: Any = None,
    state_schema: type[Any] = State,
    context_schema: type[Any] | None = Context,
    retry_policy: RetryPolicy | None = None,
) -> StateGraph[Any, Any, Any, Any]:
    """Build analyze_complexity -> select_model -> generate -> record_metrics, not compiled yet.

    Each node can be replaced by a function, a callable object or a Runnable, sync or async, that takes the state
    and returns a part of it.

    Args:
        catalog: the models, or the path of a catalog file; None finds one as the command line does.
        analyze: replaces the node that writes `complexity`.
        select: replaces the node that writes `decision`.
        generate: replaces the node that appends the answer to `messages`.
        record: replaces the node that writes `metrics`.
        state_schema: `State`, or a subclass with fields of yours.
        context_schema: `Context`, or a subclass with fields of yours; another one, or none, may carry ours.
        retry_policy: for the generation node. Give it a `retry_on`: by default it retries none of our errors.

    Returns:
        A StateGraph: `create_chancellor().compile(checkpointer=...)`.

    Raises:
        CatalogFileError: the catalog file cannot be read.
        InvalidInputError: what was given for a node is none.
    """
    if select is None or generate is None:
        models = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
        select = selection_node(models, start_s=_start_s) if select is None else select
        generate = generation_node(ChatModels(models)) if generate is None else generate
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(state_schema, context_schema=context_schema)
    analyze = complexity_node() if analyze is None else analyze
    record = metrics_node() if record is None else record
    builder.add_node("analyze_complexity", part("analyze", analyze, context_schema))
    builder.add_node("select_model", part("select", select, context_schema))
    builder.add_node("generate", part("generate", generate, context_schema), retry_policy=retry_policy)
    builder.add_node("record_metrics", part("record", record, context_schema))
    builder.add_edge(START, "analyze_complexity")
    builder.add_edge("analyze_complexity", "select_model")
    builder.add_edge("select_model", "generate")
    builder.add_edge("generate", "record_metrics")
    builder.add_edge("record_metrics", END)
    return builder


def _start_s(spec: ModelSpec) -> float | None:
    return default_pool().start_s(spec)
