"""The graph as a node of another graph (a subgraph), which has a state and a context of its own.

The two share the keys that both states have: here `messages` and `decision`. Of the parent's context, the part under
the key `chancellor` is for our nodes.

    python examples/embed.py
"""

from typing import Annotated, Any

from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from chancellor import create_chancellor
from chancellor.state import Decision


class Ticket(TypedDict, total=False):
    """State of the parent graph: a letter of a customer."""

    customer: str
    messages: Annotated[list[AnyMessage], add_messages]
    decision: Decision
    reply: str


class Settings(TypedDict):
    """Context of the parent graph."""

    signature: str
    chancellor: dict[str, Any]


def sign(state: Ticket, runtime: Runtime[Settings]) -> Ticket:
    """Make a letter of the answer."""
    answer = state["messages"][-1].text
    return {"reply": f"Dear {state['customer']},\n\n{answer}\n\n{runtime.context['signature']}"}


def main() -> None:
    """Answer a letter."""
    builder = StateGraph(Ticket, context_schema=Settings)
    builder.add_node("chancellor", create_chancellor().compile())
    builder.add_node("sign", sign)
    builder.add_edge(START, "chancellor")
    builder.add_edge("chancellor", "sign")
    builder.add_edge("sign", END)

    letter: Ticket = {"customer": "Ada", "messages": [HumanMessage("What is the capital of France?")]}
    settings: Settings = {"signature": "Your help desk", "chancellor": {"temperature": 0, "max_tokens": 24}}
    state = builder.compile().invoke(letter, context=settings)
    print(state["reply"])
    print(f"({state['decision']['model']}: {state['decision']['reason']})")


if __name__ == "__main__":
    main()
