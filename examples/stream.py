"""Tokens as they come and nodes as they end, in one stream: the stream modes `messages` and `updates` together.

`messages` brings pairs of a chunk of the answer and its metadata, `updates` what each node has written.

    python examples/stream.py
"""

import asyncio
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from chancellor import create_chancellor

Graph = CompiledStateGraph[Any, Any, Any, Any]
QUESTION = {"messages": [("user", "What is the capital of France?")]}
CONTEXT = {"temperature": 0, "max_tokens": 24}


def show(mode: str, payload: Any) -> None:
    """Print a token where it belongs, and a line for each node that ended."""
    if mode == "messages":
        chunk, _ = payload
        print(chunk.text, end="", flush=True)
    else:
        (node,) = payload
        print(f"\n[{node}]", flush=True)


def stream(graph: Graph) -> None:
    """Stream from plain functions."""
    for mode, payload in graph.stream(QUESTION, context=CONTEXT, stream_mode=["messages", "updates"]):
        show(mode, payload)


async def astream(graph: Graph) -> None:
    """Stream from coroutines."""
    async for mode, payload in graph.astream(QUESTION, context=CONTEXT, stream_mode=["messages", "updates"]):
        show(mode, payload)


def main() -> None:
    """Stream the same answer in both ways."""
    graph = create_chancellor().compile()
    stream(graph)
    asyncio.run(astream(graph))


if __name__ == "__main__":
    main()
