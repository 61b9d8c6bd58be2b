"""What LangGraph Studio does with the graph, asked of its own server: `langgraph dev`, which forbids blocking calls."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.integration.studio import Studio
from tests.integration.test_processes import all_gone, write_catalog

pytestmark = pytest.mark.engine

NODES = ["analyze_complexity", "select_model", "generate", "record_metrics"]
QUESTION: Any = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
SHORT: Any = {"temperature": 0, "max_tokens": 5}
LONG: Any = {"temperature": 0, "max_tokens": 480}  # greedy: random weights then repeat themselves, and never end


@pytest.fixture(scope="module")
def catalog(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_catalog(tmp_path_factory.mktemp("catalog"), tiny_model)


@pytest.fixture(scope="module")
def studio(catalog: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    server = Studio(tmp_path_factory.mktemp("studio"), catalog)
    try:
        yield server
        server.check()
    finally:
        server.close()


@pytest.fixture(scope="module")
def first_run(studio: Studio) -> dict[str, list[Any]]:
    """The events of the first run, which starts the engine, by their kind."""
    thread = studio.client.threads.create()["thread_id"]
    events: dict[str, list[Any]] = {}
    for part in studio.client.runs.stream(
        thread, "chancellor", input=QUESTION, context=SHORT, stream_mode=["messages", "updates", "values", "custom"]
    ):
        events.setdefault(part.event, []).append(part.data)
    return events


def test_the_form_and_the_drawing(studio: Studio) -> None:
    assistant = studio.client.assistants.search()[0]["assistant_id"]
    schemas = studio.client.assistants.get_schemas(assistant)
    properties: dict[str, Any] = {}
    for kind in ("input", "output", "state", "context"):
        schema: Any = schemas[f"{kind}_schema"]  # type: ignore[literal-required]
        assert schema["type"] == "object"
        properties[kind] = schema["properties"]
    assert set(properties["state"]) == set(properties["output"]) == {"messages", "complexity", "decision", "metrics"}
    assert "messages" in properties["input"]
    # Studio puts each field beside the node that it is tagged with.
    assert {name: field["langgraph_nodes"] for name, field in properties["context"].items()} == {
        "model": ["select_model"],
        "policy": ["select_model"],
        **{name: ["generate"] for name in ("temperature", "max_tokens", "seed", "system_prompt")},
    }
    drawing: Any = studio.client.assistants.get_graph(assistant)
    assert [node["id"] for node in drawing["nodes"]] == ["__start__", *NODES, "__end__"]


def test_the_streams(first_run: dict[str, list[Any]]) -> None:
    assert "error" not in first_run
    assert [next(iter(update)) for update in first_run["updates"]] == NODES
    assert set(first_run["values"][-1]) == {"messages", "complexity", "decision", "metrics"}
    assert first_run["values"][-1]["metrics"]["output_tokens"] == 5
    steps = [step["stage"] for step in first_run["custom"]]
    assert (steps[0], steps[-1]) == ("start", "ready")
    partial = [messages[-1]["content"] for messages in first_run["messages/partial"]]
    assert partial[-1] == first_run["values"][-1]["messages"][-1]["content"] != ""


def test_an_interrupt_before_each_node_and_another_way_from_there(studio: Studio) -> None:
    client, asked = studio.client, QUESTION
    thread = client.threads.create()["thread_id"]
    for node in NODES:
        client.runs.wait(thread, "chancellor", input=asked, interrupt_before=NODES, context=SHORT)
        assert client.threads.get_state(thread)["next"] == [node]
        asked = None
    ended: Any = client.runs.wait(thread, "chancellor", input=None, context=SHORT)
    assert ended["decision"]["reason"] == "low complexity: the light model"
    assert not client.threads.get_state(thread)["next"]

    earlier = {state["next"][0]: state["checkpoint"] for state in client.threads.get_history(thread) if state["next"]}
    assert set(earlier) == {"__start__", *NODES}
    edited = {"level": "high", "probability": None, "reasons": ["edited in Studio"], "analyzer": "a human"}
    forked: Any = client.threads.update_state(
        thread, {"complexity": edited}, as_node="analyze_complexity", checkpoint=earlier["select_model"]
    )
    assert client.threads.get_state(thread)["next"] == ["select_model"]
    other: Any = client.runs.wait(
        thread, "chancellor", input=None, checkpoint=forked["checkpoint"], context={**SHORT, "max_tokens": 4}
    )
    assert other["decision"]["reason"] == "high complexity: the strong model"
    assert (other["metrics"]["output_tokens"], len(other["messages"])) == (4, 2)
    again: Any = client.runs.wait(thread, "chancellor", input=None, checkpoint=earlier["generate"], context=SHORT)
    assert (again["decision"]["reason"], again["metrics"]["output_tokens"]) == (ended["decision"]["reason"], 5)


def test_eight_runs_at_once_are_one_batch_in_one_engine(studio: Studio, first_run: dict[str, list[Any]]) -> None:
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        runs = [threads.submit(studio.ask, f"What is {i}?", **LONG) for i in range(8)]
        answers = [run.result() for run in runs]
    elapsed = time.perf_counter() - began
    assert [answer["metrics"]["output_tokens"] for answer in answers] == [LONG["max_tokens"]] * 8
    assert sum(answer["metrics"]["inference_time_s"] for answer in answers) > elapsed  # not one after another
    exported = httpx.get(f"{studio.client.http.client.base_url}/chancellor/metrics", timeout=60).text
    peaks = re.findall(r"^chancellor_engine_requests_running_peak\{.*\} (\S+)$", exported, re.MULTILINE)
    assert len(peaks) == 1
    assert float(peaks[0]) >= 4, exported  # all eight, but where the machine holds up some of them
    assert len(studio.engines()) == 1


def test_openais_clients_have_the_same_engine(studio: Studio, first_run: dict[str, list[Any]]) -> None:
    url = f"{studio.client.http.client.base_url}/chancellor"
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked: Any = {"model": "chancellor", "messages": QUESTION["messages"], "temperature": 0, "max_tokens": 5}
        answer = client.chat.completions.with_raw_response.create(**asked)
        chunks = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
    text = answer.parse().choices[0].message.content
    assert text == "".join(chunks) == first_run["values"][-1]["messages"][-1]["content"]
    assert answer.headers["x-chancellor-reason"] == first_run["values"][-1]["decision"]["reason"]
    assert len(studio.engines()) == 1
    assert httpx.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    assert httpx.get(f"{url}/", follow_redirects=True, timeout=60).headers["content-type"].startswith("text/html")


def test_a_run_that_is_stopped(studio: Studio, first_run: dict[str, list[Any]]) -> None:
    client = studio.client
    thread = client.threads.create()["thread_id"]
    engines = studio.engines()
    for engine in engines:  # which would have answered before it is looked at
        engine.suspend()
    try:
        run = client.runs.create(thread, "chancellor", input=QUESTION, context=LONG)["run_id"]
        studio.wait_until(lambda: client.threads.get_state(thread)["next"] == ["generate"])
        client.runs.cancel(thread, run, wait=True)
    finally:
        for engine in engines:
            with suppress(psutil.NoSuchProcess):  # one that stands still for too long is ended, and another started
                engine.resume()
    assert client.threads.get_state(thread)["next"] == ["generate"]
    resumed: Any = client.runs.wait(thread, "chancellor", input=None, context=SHORT)
    assert (resumed["metrics"]["output_tokens"], len(studio.engines())) == (5, 1)


def test_an_assistant_with_a_context_of_its_own(studio: Studio) -> None:
    terse = studio.client.assistants.create("chancellor", context={"max_tokens": 3, "temperature": 0}, name="terse")
    answers = [studio.ask(assistant=terse["assistant_id"]) for _ in range(2)]
    assert [answer["metrics"]["output_tokens"] for answer in answers] == [3, 3]
    assert answers[0]["messages"][-1]["content"] == answers[1]["messages"][-1]["content"]
    assert studio.ask(assistant=terse["assistant_id"], max_tokens=4)["metrics"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": 9}, "InvalidContextError: .*temperature: Input should be less than or equal to 2"),
        ({"policy": "best"}, "UnknownChoiceError: .*'best'"),
        ({"model": "gpt-9"}, "UnknownModelError: .*'gpt-9'"),
    ],
)
def test_a_wrong_context_is_told_at_once(studio: Studio, wrong: dict[str, Any], told: str) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match=told):
        studio.ask(**wrong)
    assert time.monotonic() - began < 30


def test_neither_a_reload_nor_ctrl_c_leaves_an_engine_behind(catalog: str, tmp_path: Path) -> None:
    studio = Studio(tmp_path, catalog)
    seen: list[psutil.Process] = []
    try:
        thread = studio.client.threads.create()["thread_id"]
        studio.client.runs.wait(thread, "chancellor", input=QUESTION, context=SHORT)
        seen += studio.below()
        engines = studio.engines()
        assert len(engines) == 1
        (studio.folder / "graphs" / "chancellor.py").touch()
        assert all_gone(engines, timeout_s=180)
        answer: Any = studio.client.runs.wait(thread, "chancellor", input=QUESTION, context=SHORT)
        assert len(answer["messages"]) == 4  # the thread has outlived the reload
        seen += studio.below()
        assert len(studio.engines()) == 1
        studio.interrupt()
        assert all_gone(seen)
        studio.check()
    finally:
        studio.close()


def test_ctrl_c_while_an_engine_starts(catalog: str, tmp_path: Path) -> None:
    studio = Studio(tmp_path, catalog)
    try:
        studio.client.runs.create(None, "chancellor", input=QUESTION, context=SHORT)
        studio.wait_until(lambda: bool(studio.engines()))
        time.sleep(2)
        seen = studio.below()
        studio.interrupt()
        assert all_gone(seen)
        studio.check()
    finally:
        studio.close()
