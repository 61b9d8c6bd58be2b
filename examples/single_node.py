"""One node of ours in a graph of yours: `selection_node` says which model fits, and the rest is your own.

It reads `messages` and writes `decision`; without our first node it judges the question by the rules. The other nodes
are made by `complexity_node`, `generation_node` and `metrics_node`.

    python examples/single_node.py
"""

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from chancellor import Catalog
from chancellor.nodes import selection_node
from chancellor.state import Decision


class Desk(TypedDict, total=False):
    """State of a graph that sorts mail, without `add_messages`."""

    messages: list[tuple[str, str]]
    decision: Decision
    tray: str


def sort(state: Desk) -> Desk:
    """Put the letter into a tray by what it would cost to answer."""
    return {"tray": "for now" if state["decision"]["model"].endswith("int8") else "for the night"}


def main() -> None:
    """Sort two letters. No engine starts: nothing is answered here."""
    builder = StateGraph(Desk)
    builder.add_node("select", selection_node(Catalog.demo()))
    builder.add_node("sort", sort)
    builder.add_edge(START, "select")
    builder.add_edge("select", "sort")
    graph = builder.compile()
    for letter in (
        "When do you open?",
        "Please compare your three largest boats and explain which one suits a family.",
    ):
        state = graph.invoke({"messages": [("user", letter)]})
        print(f"{letter} -> {state['tray']} ({state['decision']['reason']})")


if __name__ == "__main__":
    main()
