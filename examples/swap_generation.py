"""A function of yours in the place of `generate`: it asks the chosen model in its own way.

This one puts what it found in your documents before the question. The metrics are still filled: they are read from the
message that the model returns.

    python examples/swap_generation.py
"""

from langchain_core.messages import AnyMessage, SystemMessage

from chancellor import Catalog, ChatModels, State, create_chancellor

DOCUMENTS = {
    "opening": "The library is open from 9 to 17, on Sundays from 11 to 15.",
    "fee": "A card of the library costs 12 euros a year.",
}
CATALOG = Catalog.demo()
MODELS = ChatModels(CATALOG)


def generate(state: State) -> dict[str, list[AnyMessage]]:
    """Answer from the documents."""
    question = str(state["messages"][-1].text).lower()
    found = [text for word, text in DOCUMENTS.items() if word in question]
    prompt = SystemMessage("Answer in one sentence, from these facts: " + " ".join(found))
    model = MODELS[state["decision"]["model"]]
    return {"messages": [model.invoke([prompt, *state["messages"]], temperature=0, max_tokens=32)]}


def main() -> None:
    """Ask something that only the documents know."""
    graph = create_chancellor(CATALOG, generate=generate).compile()
    state = graph.invoke({"messages": [("user", "What is the fee for a card?")]})
    print(state["messages"][-1].text)
    print(f"{state['metrics']['output_tokens']} tokens in {state['metrics']['inference_time_s']:.2f} s")


if __name__ == "__main__":
    main()
