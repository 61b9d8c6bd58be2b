"""Which model answers a request: the one that is named, or the one that the graph's first two nodes choose."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from langchain_core.messages.utils import convert_to_messages
from langgraph.graph import END, START, StateGraph

from chancellor.catalog import Catalog, ModelSpec
from chancellor.chat.substitutes import ladder_of
from chancellor.context import Context
from chancellor.engines import EnginePool
from chancellor.engines.ladder import Ladder
from chancellor.errors import CatalogFileError, UnknownModelError
from chancellor.nodes import complexity_node, selection_node
from chancellor.state import Complexity, Decision, State

__all__ = ["CHANCELLOR", "Choice", "Chooser"]

CHANCELLOR: Final = "chancellor"
"""Name of the virtual model: whichever the graph chooses."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The model, how to go on without it, and why it was chosen."""

    spec: ModelSpec
    ladder: Ladder
    complexity: Complexity | None = None
    decision: Decision | None = None

    def headers(self, model: ModelSpec | None = None) -> dict[str, str]:
        """Return it as headers.

        Args:
            model: the one that answers, if it is another.
        """
        spec = model or self.spec
        made = {
            "x-chancellor-model": quote(spec.name),
            "x-chancellor-trinity-score": f"{spec.trinity_score:g}",
        }
        if self.complexity is not None:
            made["x-chancellor-complexity"] = quote(str(self.complexity["level"]), safe=" ")
        if self.decision is not None:
            made["x-chancellor-policy"] = quote(self.decision["policy"], safe=" ")
            made["x-chancellor-reason"] = quote(self.decision["reason"], safe=" ,:;()<>='")
        return made


class Chooser:
    """The graph's first two nodes, and the catalog.

    Args:
        catalog: the models.
        pool: where they run.
        analyze: the first node; None for the graph's own.
        select: the second node; None for the graph's own.

    Raises:
        CatalogFileError: a model has the name of the virtual one.
    """

    def __init__(self, catalog: Catalog, pool: EnginePool, analyze: Any = None, select: Any = None) -> None:
        if CHANCELLOR in catalog:
            raise CatalogFileError(
                f"A model is named {CHANCELLOR!r}, which lets the endpoint choose one.", hint="Give it another name."
            )
        self._catalog = catalog
        builder: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=Context)
        builder.add_node("analyze_complexity", complexity_node() if analyze is None else analyze)
        builder.add_node("select_model", selection_node(catalog, start_s=pool.start_s) if select is None else select)
        builder.add_edge(START, "analyze_complexity")
        builder.add_edge("analyze_complexity", "select_model")
        builder.add_edge("select_model", END)
        self._graph = builder.compile(name="chancellor-choice")
        self._ladders: dict[tuple[str, bool], Ladder] = {}

    def named(self, name: str) -> Choice:
        """Return the model of this name: no other one answers in its place.

        Raises:
            UnknownModelError: there is none.
            ModelRejectedError: its Trinity score is too low.
        """
        try:
            return self._choice(name, substitute=False)
        except UnknownModelError as error:
            hint = f"{error.hint} {CHANCELLOR!r} lets the endpoint choose one."
            raise UnknownModelError(error.message, hint=hint) from error

    async def choose(
        self,
        messages: Sequence[Mapping[str, Any]],
        policy: str | None = None,
        *,
        max_tokens: int | None = None,
        tools: Sequence[Any] = (),
    ) -> Choice:
        """Return the model that the graph chooses for a conversation.

        Args:
            messages: the conversation.
            policy: how to choose; None for the graph's own way.
            max_tokens: how long the answer may get; it has to fit as well.
            tools: what the model is told that it may call, which takes room as well.

        Raises:
            ChancellorError: no model may answer it.
        """
        shown = [_shown(message) for message in messages]
        if tools:  # judged are the user's texts, counted are all
            shown.insert(0, {"role": "system", "content": json.dumps(list(tools), default=str)})
        state = {"messages": convert_to_messages(shown)}
        given = {"policy": policy, "max_tokens": max_tokens}
        context = Context(**{name: value for name, value in given.items() if value is not None})
        made = await self._graph.ainvoke(state, context=context)
        decision: Decision = made["decision"]
        return self._choice(decision["model"], made.get("complexity"), decision, substitute=True)

    def _choice(
        self,
        name: str,
        complexity: Complexity | None = None,
        decision: Decision | None = None,
        *,
        substitute: bool,
    ) -> Choice:
        spec = self._catalog.usable(name)
        ladder = self._ladders.get((name, substitute))
        if ladder is None:
            ladder = self._ladders[name, substitute] = ladder_of(self._catalog, spec, substitute=substitute)
        return Choice(spec, ladder, complexity, decision)


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes judge texts; calls with arguments that are no JSON would not even be read."""
    shown = {key: value for key, value in message.items() if key != "tool_calls"}
    shown["content"] = message["content"] or ""
    return shown
