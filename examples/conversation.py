"""A conversation in a file: a checkpointer, a pause before each answer, and a way back into the past.

The thread is kept in a file of SQLite's, so that each turn could be a program of its own.

    python examples/conversation.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph.state import CompiledStateGraph

from chancellor import create_chancellor

CONTEXT = {"temperature": 0, "max_tokens": 24}
THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}


def compiled(saver: SqliteSaver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Compile the graph so that it waits before it answers."""
    return create_chancellor().compile(checkpointer=saver, interrupt_before=["generate"])


def main() -> None:
    """Take two turns, then go back to before the second answer and have another model give it."""
    with TemporaryDirectory() as folder:
        file = str(Path(folder) / "conversation.sqlite")
        for question in ("What is 2+2?", "And 3+3?"):
            with SqliteSaver.from_conn_string(file) as saver:
                graph = compiled(saver)
                graph.invoke({"messages": [("user", question)]}, THREAD, context=CONTEXT)
                waiting = graph.get_state(THREAD)
                print(f"{question} -> {waiting.next[0]} waits, with {waiting.values['decision']['model']}")
                state = graph.invoke(None, THREAD, context=CONTEXT)  # go on
                print(f"{len(state['messages'])} messages: {state['messages'][-1].text}")

        with SqliteSaver.from_conn_string(file) as saver:
            graph = compiled(saver)
            past = next(one for one in graph.get_state_history(THREAD) if one.next == ("generate",))
            decision = {**past.values["decision"], "model": "smollm2-135m", "reason": "once more"}
            fork = graph.update_state(past.config, {"decision": decision})
            state = graph.invoke(None, fork, context=CONTEXT)
            print(f"Once more, with {state['decision']['model']}: {state['messages'][-1].text}")


if __name__ == "__main__":
    main()
