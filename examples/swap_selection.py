"""A function of yours in the place of `select_model`: it says which model answers.

This one looks at a setting of the run that is not ours but yours, in a subclass of the context. Where the complexity
and the catalog's candidates are all that you look at, write a policy instead (see `chancellor.policies`) and pass
`select=selection_node(catalog, policy)`.

    python examples/swap_selection.py
"""

from langgraph.runtime import Runtime

from chancellor import Catalog, Context, State, create_chancellor
from chancellor.state import Decision

CATALOG = Catalog.demo()


class Settings(Context):
    """Our settings, and one more."""

    paying: bool = False


def select(state: State, runtime: Runtime[Settings]) -> dict[str, Decision]:
    """Give those who pay the better model, where the question needs it."""
    better = runtime.context.paying and state["complexity"]["level"] == "high"
    spec = CATALOG["smollm2-135m" if better else "smollm2-135m-int8"]
    return {
        "decision": {
            "model": spec.name,
            "trinity_score": spec.trinity_score,
            "policy": "by customer",
            "reason": "a hard question of a paying customer" if better else "cheap is good enough",
            "candidates": [],
        }
    }


def main() -> None:
    """Ask the same as a guest and as a paying customer."""
    question = "Explain to me in two short sentences what the moon is made of."
    graph = create_chancellor(CATALOG, select=select, context_schema=Settings).compile()
    for paying in (False, True):
        settings = Settings(paying=paying, temperature=0, max_tokens=16)
        state = graph.invoke({"messages": [("user", question)]}, context=settings)
        print(f"{paying=}: {state['decision']['model']}, {state['decision']['reason']}")


if __name__ == "__main__":
    main()
