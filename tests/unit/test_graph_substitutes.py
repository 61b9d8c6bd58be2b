"""Where another model than the chosen one had to answer: what is said of it, and who goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from chancellor import Catalog, ChatModels, ModelSpec, ask, create_chancellor, progress
from chancellor.answer import Answer
from chancellor.catalog import EngineOptions
from chancellor.engines import EnginePool
from chancellor.errors import BrokenCheckpointError
from chancellor.nodes import generation_node
from tests.faulty import FaultyEngine, Plan
from tests.remote_server import Server, running

HARD = "Please explain to me in detail how the tides of the sea work"


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def models(server: Server) -> Catalog:
    """A strong model that its server does not have, and a light one that it has."""
    engine = EngineOptions(kind="openai", base_url=server.url)
    return Catalog(
        [
            ModelSpec(name="far", source="absent", trinity=99, tier="strong", engine=engine),
            ModelSpec(name="near", source="m", trinity=97.5, tier="light", engine=engine),
        ]
    )


def test_ask_names_the_model_that_answered(server: Server) -> None:
    answer = ask(HARD, catalog=models(server))
    assert answer.response == "one two three"
    assert (answer.model_used, answer.trinity_score) == ("near", 97.5)
    assert (answer.decision["model"], answer.decision["trinity_score"]) == ("far", 99.0)
    assert [step["step"] for step in answer.metrics["fallbacks"]] == ["other_model"]


def test_so_does_the_command_line(server: Server, tmp_path: Path) -> None:
    entry = '[[models]]\nname = "{}"\nsource = "{}"\ntrinity = {}\ntier = "{}"\n[models.engine]\nkind = "openai"\n'
    rows = [("far", "absent", 99, "strong"), ("near", "m", 97.5, "light")]
    config = tmp_path / "chancellor.toml"
    config.write_text("".join(entry.format(*row) + f'base_url = "{server.url}"\n' for row in rows), encoding="utf-8")
    made = subprocess.run(
        [sys.executable, "-m", "chancellor.cli", "ask", "--json", "--config", str(config), HARD],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "CHANCELLOR_LOG_DIR": str(tmp_path / "log")},
    )
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["model_used"], said["trinity_score"], said["decision"]["model"]) == ("near", 97.5, "far")


@pytest.mark.parametrize("name", ["gpt", None])
def test_a_name_that_no_candidate_has_is_not_taken(name: str | None) -> None:
    state = {
        "messages": [AIMessage("hi", response_metadata={"model_name": name})],
        "decision": {"model": "mine", "trinity_score": 96.0, "policy": "", "reason": ""},
        "complexity": {},
        "metrics": {"inference_time_s": None},
    }
    answer = Answer.of(state)
    assert (answer.model_used, answer.trinity_score) == ("mine", 96.0)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_the_model_that_has_called_a_tool_goes_on(server: Server) -> None:
    call = {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    server.wholes[HARD] = {"content": None, "tool_calls": [call]}
    catalog = models(server)
    pool = EnginePool()
    chat = ChatModels(catalog, pool=pool)
    bound: Any = {name: chat[name].bind_tools([add]) for name in chat}
    graph = create_chancellor(catalog, generate=generation_node(bound)).compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    state = graph.invoke({"messages": [HumanMessage(HARD)]}, thread)
    assert state["decision"]["model"] == "far"
    assert state["messages"][-1].tool_calls == [
        {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_a", "type": "tool_call"}
    ]
    state = graph.invoke({"messages": [ToolMessage("3", tool_call_id="call_a")]}, thread)
    assert (state["decision"]["model"], state["decision"]["policy"]) == ("near", "held")
    assert state["metrics"]["fallbacks"] == []
    assert [message["role"] for message in server.body["messages"]] == ["user", "assistant", "tool"]
    pool.close()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_its_start_is_in_the_custom_stream(*, asynchronous: bool) -> None:
    a = ModelSpec(name="a", source="fake/a", trinity=99.0, parameters=2_000)
    b = ModelSpec(name="b", source="fake/b", trinity=98.0, parameters=1_000)
    error = BrokenCheckpointError("It is broken.")
    FaultyEngine.reset(Plan(start_errors={"a/vllm/None": [error]}))

    class Watched(FaultyEngine):
        async def start(self) -> None:
            progress.report("start", "c", "another run's")
            progress.report("start", self.spec.name, "loading")
            await super().start()

    pool = EnginePool(Watched)
    chat = ChatModels(Catalog([a, b]), pool=pool)
    graph = create_chancellor(Catalog([a, b]), generate=generation_node(chat)).compile()
    asked: Any = {"input": {"messages": HARD}, "context": {"max_tokens": 3}, "stream_mode": "custom"}
    steps: list[Any] = [step async for step in graph.astream(**asked)] if asynchronous else list(graph.stream(**asked))
    pool.close()
    FaultyEngine.reset()
    assert [(step["stage"], step["model"]) for step in steps] == [
        *(("start", "a"), ("start", "a")),
        *(("start", "b"), ("ready", "b")),
    ]
    assert (steps[1]["message"], steps[1]["substitute"]) == ("b answers instead: It is broken.", "b")
    assert "substitute" not in steps[0]
