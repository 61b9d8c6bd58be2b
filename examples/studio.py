"""A client of LangGraph's server, which Studio is one of: an assistant with a context of its own, a thread, a stream.

make studio        # in another terminal; it prints its address, here http://127.0.0.1:2024
LANGGRAPH_URL=http://127.0.0.1:2024 python examples/studio.py
"""

import os
from typing import Any

from langgraph_sdk import get_sync_client


def main() -> None:
    """Ask a terse assistant, and read what the server streams."""
    client = get_sync_client(url=os.environ.get("LANGGRAPH_URL", "http://127.0.0.1:2024"))
    context: Any = {"temperature": 0, "max_tokens": 24, "system_prompt": "Answer in one sentence."}
    terse = client.assistants.create("chancellor", context=context, name="terse")
    thread = client.threads.create()
    asked: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    stream = client.runs.stream(
        thread["thread_id"], terse["assistant_id"], input=asked, stream_mode=["updates", "custom"]
    )
    for part in stream:
        data: Any = part.data
        if part.event == "custom":  # what a starting engine is doing
            print(f"{data['model']}: {data['message']}")
        elif part.event == "updates":
            print(*(f"[{node}]" for node in data))
    state: Any = client.threads.get_state(thread["thread_id"])["values"]
    print(state["messages"][-1]["content"])
    print(f"({state['decision']['model']}, {state['metrics']['output_tokens']} tokens)")
    client.assistants.delete(terse["assistant_id"])


if __name__ == "__main__":
    main()
