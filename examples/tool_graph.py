"""A tool loop from LangGraph's own parts: `bind_tools`, `ToolNode` and `tools_condition`.

The first call is forced by `tool_choice`, as the demo's small model never decides for a tool by itself; its arguments
are guided by the tool's schema.

    python examples/tool_graph.py
"""

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from chancellor import ChatVLLM


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


MODEL = ChatVLLM(model="smollm2-135m-int8", temperature=0, max_tokens=64)
FORCED = MODEL.bind_tools([multiply], tool_choice="multiply")


def model(state: MessagesState) -> dict[str, list[AnyMessage]]:
    """Call the tool first, then answer with its result."""
    messages = state["messages"]
    chosen = MODEL if messages[-1].type == "tool" else FORCED
    return {"messages": [chosen.invoke(messages)]}


def main() -> None:
    """Ask for a product."""
    builder = StateGraph(MessagesState)
    builder.add_node("model", model)
    builder.add_node("tools", ToolNode([multiply]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    state = builder.compile().invoke({"messages": [HumanMessage("What is 6 times 7?")]})
    for message in state["messages"]:
        print(f"{message.type}: {message.text or message.tool_calls}")


if __name__ == "__main__":
    main()
