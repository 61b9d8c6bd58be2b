"""A function of yours in the place of `record_metrics`: it says what an answer took.

This one counts money, into a field of its own. To keep our metrics and also send them elsewhere, pass
`record=metrics_node([recorder])` instead, with `metrics_node` from `chancellor.nodes`.

    python examples/swap_metrics.py
"""

from langchain_core.messages import AIMessage

from chancellor import State, create_chancellor

CENTS_PER_MILLION_TOKENS = {"smollm2-135m-int8": (1.0, 4.0), "smollm2-135m": (2.0, 8.0)}


class Billed(State, total=False):
    """Our state, and one field more."""

    cents: float


def record(state: Billed) -> dict[str, float]:
    """Price the tokens of question and answer."""
    answer = state["messages"][-1]
    if not isinstance(answer, AIMessage) or answer.usage_metadata is None:
        return {}
    usage = answer.usage_metadata
    per_input, per_output = CENTS_PER_MILLION_TOKENS[state["decision"]["model"]]
    return {"cents": (usage["input_tokens"] * per_input + usage["output_tokens"] * per_output) / 1e6}


def main() -> None:
    """Ask, and print the bill."""
    graph = create_chancellor(record=record, state_schema=Billed).compile()
    state = graph.invoke({"messages": [("user", "Name a fruit.")]}, context={"temperature": 0, "max_tokens": 16})
    print(state["messages"][-1].text)
    print(f"{state['cents']:.6f} cents")


if __name__ == "__main__":
    main()
