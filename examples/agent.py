"""An agent of LangChain's whose every call goes to the model that fits: tools, and `TrinityMiddleware`.

The demo's model of 135 million parameters never decides for a tool by itself, so a second middleware forces a call as
long as there is no result. The call's arguments are guided by the tool's schema. A larger model needs none of this.

    python examples/agent.py
"""

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

from chancellor import ChatVLLM, TrinityMiddleware

MODELS = {name: ChatVLLM(model=name, temperature=0, max_tokens=64) for name in ("smollm2-135m-int8", "smollm2-135m")}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@wrap_model_call
def tool_first(
    request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
) -> ModelResponse[Any]:
    """Have the model call a tool before it answers."""
    if request.messages[-1].type == "human":
        request = request.override(tool_choice="any")
    return handler(request)


def main() -> None:
    """Ask something easy and something hard."""
    agent = create_agent(
        model=MODELS["smollm2-135m-int8"],  # stands in for all: the middleware chooses
        tools=[add],
        middleware=[TrinityMiddleware(models=MODELS), tool_first],
    )
    for question in ("What is 3 plus 4?", "Please explain to me step by step what the sum of 3 and 4 is."):
        for message in agent.invoke({"messages": [HumanMessage(question)]})["messages"]:
            if isinstance(message, AIMessage):
                calls = [f"{call['name']}{call['args']}" for call in message.tool_calls]
                decision = message.response_metadata["decision"]
                print(f"{decision['model']} ({decision['reason']}):", message.text, *calls)
            else:
                print(f"{message.type}: {message.text}")


if __name__ == "__main__":
    main()
