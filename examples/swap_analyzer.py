"""A function of yours in the place of `analyze_complexity`: it says how hard a question is.

What it writes decides which model answers. Where the text of the question is all that you look at, wrap a function of
that text instead: `create_chancellor(analyze=complexity_node(judge))`, with `complexity_node` from `chancellor.nodes`.

    python examples/swap_analyzer.py
"""

from chancellor import State, create_chancellor
from chancellor.state import Complexity

HARD_SUBJECTS = ("cache", "database", "compiler")


def analyze(state: State) -> dict[str, Complexity]:
    """Judge a question by its subject, not by its length."""
    question = str(state["messages"][-1].text).lower()
    found = [subject for subject in HARD_SUBJECTS if subject in question]
    return {
        "complexity": {
            "level": "high" if found else "low",
            "probability": None,
            "reasons": [f"about a {subject}" for subject in found] or ["no hard subject"],
            "analyzer": "subjects",
        }
    }


def main() -> None:
    """Ask about two subjects."""
    graph = create_chancellor(analyze=analyze).compile()
    for question in ("Name a colour.", "Design a distributed cache."):
        state = graph.invoke({"messages": [("user", question)]}, context={"temperature": 0, "max_tokens": 16})
        print(f"{question} {state['complexity']['reasons'][0]} -> {state['decision']['model']}")


if __name__ == "__main__":
    main()
