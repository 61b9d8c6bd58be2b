"""The graph over models on servers: the pool runs them as it does engines of this process."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import BaseModel

from chancellor import Catalog, ChatModels, ModelSpec, create_chancellor, errors
from chancellor.catalog import EngineOptions
from chancellor.doctor import servers
from chancellor.engines import Engine, EnginePool, remote_server
from chancellor.engines.remote import RemoteEngine
from chancellor.nodes import generation_node
from tests.fakes import FakeEngine
from tests.remote_server import Server, running

HARD = "Please explain to me in detail how the tides of the sea work"


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def catalog(server: Server) -> Catalog:
    engine = EngineOptions(kind="openai", base_url=server.url)
    return Catalog(
        [
            ModelSpec(name="here", source="fake/here", trinity=96, parameters=1_000, tier="light"),
            ModelSpec(name="far", source="m", trinity=97, tier="strong", engine=engine),
        ]
    )


@pytest.fixture
def chat(catalog: Catalog, fake_engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatModels]:
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.1)

    def made(spec: ModelSpec) -> Engine:
        return RemoteEngine(spec) if spec.engine.kind == "openai" else FakeEngine(spec)

    pool = EnginePool(made)
    yield ChatModels(catalog, pool=pool)
    pool.close()


@pytest.fixture
def graph(catalog: Catalog, chat: ChatModels) -> Any:
    return create_chancellor(catalog, generate=generation_node(chat)).compile()


def test_its_metrics_are_those_of_any_engine(graph: Any, server: Server) -> None:
    state = graph.invoke({"messages": HARD}, context={"temperature": 0, "max_tokens": 9, "seed": 4})
    metrics = state["metrics"]
    assert state["messages"][-1].response_metadata["model_name"] == "far"
    assert (metrics["engine"], metrics["input_tokens"], metrics["output_tokens"]) == ("openai", 7, 3)
    assert metrics["inference_time_s"] > 0
    assert state["messages"][-1].usage_metadata["input_token_details"] == {"cache_read": 4}
    assert (server.body["temperature"], server.body["max_tokens"], server.body["seed"]) == (0, 9, 4)


async def test_its_tokens_stream(graph: Any) -> None:
    seen: dict[str, list[Any]] = {"messages": [], "values": []}
    async for mode, payload in graph.astream({"messages": HARD}, stream_mode=["messages", "values"]):
        seen[mode].append(payload)
    chunks = [chunk for chunk, _ in seen["messages"]]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == "one two three"
    assert seen["values"][-1]["metrics"]["time_to_first_token_s"] > 0


def test_without_its_server_another_model_answers(graph: Any, server: Server) -> None:
    server.stop()
    state = graph.invoke({"messages": HARD})
    assert state["messages"][-1].text == f"here says: {HARD}"
    (step,) = state["metrics"]["fallbacks"]
    assert (step["step"], step["from"]) == ("other_model", "far (openai)")
    with pytest.raises(errors.EngineStartError, match="cannot be reached"):  # by name, no other will do
        graph.invoke({"messages": HARD}, context={"model": "far"})


def test_what_is_lost_is_asked_again(graph: Any, server: Server) -> None:
    server.first[HARD] = ["cut"]
    chunks = [chunk.text for chunk, _ in graph.stream({"messages": HARD}, stream_mode="messages")]
    assert "".join(chunks) == "one two three"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "kind"), [(429, errors.EngineBusyError), (400, errors.InvalidInputError), (500, errors.GenerationError)]
)
def test_its_errors_are_ours(graph: Any, server: Server, status: int, kind: type[Exception]) -> None:
    server.statuses[HARD] = (status, {"error": {"message": "no"}}, {})
    with pytest.raises(kind):
        graph.invoke({"messages": HARD})


def test_tools_and_structured_output(chat: ChatModels, server: Server) -> None:
    class Tide(BaseModel):
        """A tide."""

        metres: float

    call = {"id": "1", "type": "function", "function": {"name": "Tide", "arguments": '{"metres": 2.5}'}}
    server.wholes["call"] = {"content": None, "tool_calls": [call]}
    made: Any = chat["far"].bind_tools([Tide], tool_choice="Tide").invoke("call")
    assert [(one["name"], one["args"]) for one in made.tool_calls] == [("Tide", {"metres": 2.5})]
    assert server.body["tool_choice"] == {"type": "function", "function": {"name": "Tide"}}
    server.wholes["json"] = {"content": '{"metres": 1.5}'}
    assert chat["far"].with_structured_output(Tide).invoke("json") == Tide(metres=1.5)
    assert server.body["response_format"]["json_schema"]["schema"]["required"] == ["metres"]


def test_what_it_reads_is_what_its_entry_says(chat: ChatModels) -> None:
    assert "max_input_tokens" not in (chat["far"].profile or {})  # its server knows
    assert (chat["here"].profile or {})["max_input_tokens"] == 4096


def test_langchains_own_model_may_stand_behind_a_name(catalog: Catalog, chat: ChatModels, server: Server) -> None:
    openai = pytest.importorskip("langchain_openai")
    own = openai.ChatOpenAI(model="m", base_url=server.url, api_key="none", max_retries=0)
    graph = create_chancellor(catalog, generate=generation_node({"here": chat["here"], "far": own})).compile()
    state = graph.invoke({"messages": [HumanMessage(HARD)]})
    assert state["messages"][-1].text == "one two three"
    assert (state["metrics"]["engine"], state["metrics"]["output_tokens"]) == ("openai-chat", 3)


def test_further_arguments_that_nothing_takes_are_told(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    options = EngineOptions(kind="openai", base_url=server.url, vllm={"max_retries": 9, "extra_body": {"top_k": 3}})
    far = Catalog([ModelSpec(name="far", source="m", trinity=97, engine=options)])
    pool = EnginePool()
    ChatModels(far, pool=pool)["far"].invoke("hi")
    pool.close()
    assert server.body["top_k"] == 3
    assert "far: max_retries under [models.engine.vllm] is not sent" in caplog.text


def test_so_does_the_doctor(server: Server) -> None:
    options = EngineOptions(kind="openai", base_url=server.url, vllm={"max_retries": 9})
    found = list(servers.server(ModelSpec(name="far", source="m", trinity=97, engine=options)))
    assert [(one.check, one.status) for one in found] == [("arguments", "warning"), ("server", "ok")]
    assert "max_retries" in found[0].message
