"""The graph's logic, over a fake engine."""

import asyncio
import warnings
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel

from chancellor import ChatModels, Context, State, create_chancellor, errors
from chancellor.engines import EnginePool
from chancellor.nodes import complexity_node, generation_node, metrics_node, selection_node
from chancellor.state import Complexity, Metrics
from tests.fakes import FakeEngine, catalog

NODES = ["analyze_complexity", "select_model", "generate", "record_metrics"]
EASY, MIDDLING = "What is 2+2?", "Tell me something nice about the small cat of my aunt Berta"
HARD = "Please explain to me in detail how the tides of the sea work"
Graph = CompiledStateGraph[Any, Any, Any, Any]


def ask(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.fixture
def models(fake_engine: type[FakeEngine]) -> ChatModels:
    return ChatModels(catalog(), pool=EnginePool(fake_engine))


@pytest.fixture
def graph(models: ChatModels) -> Graph:
    return create_chancellor(catalog(), generate=generation_node(models)).compile()


@pytest.mark.parametrize(("question", "model"), [(EASY, "light"), (MIDDLING, "best"), (HARD, "strong")])
def test_invoke_writes_everything(graph: Graph, question: str, model: str) -> None:
    state = graph.invoke(ask(question))
    answer = state["messages"][-1]
    assert isinstance(answer, AIMessage)
    assert answer.text == f"{model} says: {question}"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == 3
    assert answer.response_metadata["model_name"] == model
    assert answer.response_metadata["finish_reason"] == "stop"
    assert state["decision"]["model"] == model
    assert state["complexity"]["analyzer"] == "rules"
    metrics = state["metrics"]
    assert set(metrics) == set(Metrics.__annotations__)
    assert (metrics["engine"], metrics["inference_time_s"], metrics["time_to_first_token_s"]) == ("fake", 0.5, 0.1)
    assert metrics["tokens_per_s"] == metrics["output_tokens"] / 0.5
    assert metrics["process_memory_mib"] > 10
    assert metrics["quantization"] == ("int8" if model == "light" else None)


def test_every_candidate_has_a_reason(graph: Graph) -> None:
    decision = graph.invoke(ask(EASY))["decision"]
    reasons = {candidate["model"]: candidate["reason"] for candidate in decision["candidates"]}
    assert reasons["light"] == "chosen: low complexity: the light model"
    assert reasons["best"] == "passed over"
    assert reasons["poor"] == "rejected: Trinity score 90 is below the minimum of 95"
    assert decision["trinity_score"] == 96.0
    assert [candidate["parameters"] for candidate in decision["candidates"]] == [1000, 2000, 3000, None]


async def test_ainvoke_and_batch(graph: Graph) -> None:
    assert (await graph.ainvoke(ask(EASY)))["messages"][-1].text == f"light says: {EASY}"
    states = await graph.abatch([ask(EASY), ask(HARD)])
    assert [state["decision"]["model"] for state in states] == ["light", "strong"]
    assert [state["decision"]["model"] for state in graph.batch([ask(HARD), ask(EASY)])] == ["strong", "light"]


def test_stream_modes(graph: Graph) -> None:
    updates = [next(iter(update)) for update in graph.stream(ask(EASY), stream_mode="updates")]
    assert updates == NODES
    values = list(graph.stream(ask(EASY), stream_mode="values"))
    assert set(values[-1]) == {"messages", "complexity", "decision", "metrics"}
    chunks: list[Any] = [message for message, _ in graph.stream(ask(EASY), stream_mode="messages")]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(str(chunk.text) for chunk in chunks) == f"light says: {EASY}"
    assert 1 <= len(chunks) <= 5  # what comes while the caller is busy comes joined


async def test_astream_yields_tokens_and_progress(graph: Graph) -> None:
    seen: dict[str, list[Any]] = {"messages": [], "custom": [], "updates": []}
    async for mode, payload in graph.astream(ask(EASY), stream_mode=["messages", "custom", "updates"]):
        seen[mode].append(payload)
    assert "".join(str(message.text) for message, _ in seen["messages"]) == f"light says: {EASY}"
    assert [step["stage"] for step in seen["custom"]] == ["ready"]
    assert len(seen["updates"]) == 4


def test_nobody_streams_nobody_works_per_token(graph: Graph, fake_engine: type[FakeEngine]) -> None:
    graph.invoke(ask(EASY))
    assert [request.stream for request in fake_engine.requests] == [False]
    list(graph.stream(ask(EASY), stream_mode="messages"))
    assert fake_engine.requests[-1].stream is True


@pytest.mark.parametrize("saver", ["memory", "sqlite"])
def test_conversation_with_a_checkpointer(models: ChatModels, fake_engine: type[FakeEngine], saver: str) -> None:
    builder = create_chancellor(catalog(), generate=generation_node(models))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a state that is no plain JSON makes the checkpointer warn
        if saver == "memory":
            converse(builder.compile(checkpointer=InMemorySaver()), fake_engine)
        else:
            with SqliteSaver.from_conn_string(":memory:") as sqlite:
                converse(builder.compile(checkpointer=sqlite), fake_engine)


def converse(graph: Graph, fake_engine: type[FakeEngine]) -> None:
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.invoke(ask(EASY), config)
    state = graph.invoke(ask(HARD), config)
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]
    assert [message["role"] for message in fake_engine.requests[-1].messages] == ["user", "assistant", "user"]
    assert state["decision"]["model"] == "strong"
    stored = graph.get_state(config).values
    assert stored["metrics"] == state["metrics"]
    assert graph.invoke(ask(EASY), {"configurable": {"thread_id": "two"}})["messages"][0].text == EASY


def test_a_failed_turn_leaves_the_earlier_ones(models: ChatModels) -> None:
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    before = graph.invoke(ask(EASY), config)
    with pytest.raises(errors.EngineDiedError):
        graph.invoke(ask("die"), config)
    kept = graph.get_state(config).values
    assert kept["messages"][:2] == before["messages"]
    assert [message.type for message in kept["messages"]] == ["human", "ai", "human"]  # no half an answer
    assert kept["metrics"] == before["metrics"]
    assert graph.invoke(ask(EASY), config)["messages"][-1].text == f"light says: {EASY}"


def plain(state: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [AIMessage("from mine")]}


async def plain_async(state: dict[str, Any]) -> dict[str, Any]:
    return plain(state)


def with_runtime(state: dict[str, Any], runtime: Runtime[Context]) -> dict[str, Any]:
    assert runtime.context.temperature == 0
    return plain(state)


class CallableObject:
    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        return plain(state)


class AsyncCallableObject:
    async def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        return plain(state)


REPLACEMENTS: list[Any] = [
    plain,
    plain_async,
    with_runtime,
    CallableObject(),
    AsyncCallableObject(),
    RunnableLambda(plain),
    RunnableLambda(plain, afunc=plain_async),
]


@pytest.mark.parametrize("node", REPLACEMENTS, ids=lambda node: getattr(node, "__name__", type(node).__name__))
def test_generate_can_be_anything_callable(node: Any) -> None:
    graph = create_chancellor(catalog(), generate=node).compile()
    state = asyncio.run(graph.ainvoke(ask(EASY), context=Context(temperature=0)))
    assert state["messages"][-1].text == "from mine"
    assert state["metrics"]["inference_time_s"] is None  # it says nothing, so nothing is claimed
    if node in (plain_async, REPLACEMENTS[4]):
        return
    assert graph.invoke(ask(EASY), context={"temperature": 0})["messages"][-1].text == "from mine"


def test_each_of_the_other_nodes_can_be_replaced(models: ChatModels) -> None:
    def analyze(state: State) -> dict[str, Any]:
        return {"complexity": {"level": "high", "probability": 0.9, "reasons": ["mine"], "analyzer": "mine"}}

    def select(state: State) -> dict[str, Any]:
        decision = {"model": "best", "trinity_score": 99.0, "policy": "mine", "reason": "mine", "candidates": []}
        return {"decision": decision}

    noted: list[Any] = []

    def record(state: State) -> dict[str, Any]:
        noted.append(state["decision"]["model"])
        return {}

    generate = generation_node(models)
    assert (
        create_chancellor(catalog(), analyze=analyze, generate=generate)
        .compile()
        .invoke(ask(EASY))["decision"]["model"]
        == "strong"
    )
    graph = create_chancellor(catalog(), select=select, generate=generate, record=record).compile()
    assert graph.invoke(ask(EASY))["messages"][-1].text == f"best says: {EASY}"
    assert noted == ["best"]


def test_any_chat_model_can_stand_behind_a_name() -> None:
    models = dict.fromkeys(["light", "best", "strong"], FakeListChatModel(responses=["hello from elsewhere"]))
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile()
    assert graph.invoke(ask(EASY))["messages"][-1].text == "hello from elsewhere"
    with pytest.raises(errors.UnknownModelError, match="does not have"):
        create_chancellor(catalog(), generate=generation_node({})).compile().invoke(ask(EASY))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_so_can_what_is_made_of_one(models: ChatModels, *, asynchronous: bool) -> None:
    far = FakeListChatModel(responses=["far"])
    made: dict[str, tuple[Any, str, str]] = {
        "retry": (far.with_retry(), "far", "RunnableRetry"),
        "chain": (far | RunnableLambda(lambda answer: answer), "far", "RunnableSequence"),
        "parser": (far | StrOutputParser(), "far", "RunnableSequence"),
        "ours": (models["light"].with_retry(), f"light says: {EASY}", "fake"),
    }
    for model, text, engine in made.values():
        graph = create_chancellor(catalog(), generate=generation_node({"light": model})).compile()
        context = {"temperature": 0}
        state = (
            await graph.ainvoke(ask(EASY), context=context)
            if asynchronous
            else graph.invoke(ask(EASY), context=context)
        )
        assert state["messages"][-1].text == text
        assert state["messages"][-1].response_metadata["model_name"] == "light"
        assert state["metrics"]["engine"] == engine


def test_context_reaches_model_and_selection(graph: Graph, fake_engine: type[FakeEngine]) -> None:
    state = graph.invoke(
        ask(EASY), context={"model": "best", "temperature": 0, "max_tokens": 5, "system_prompt": "Rhyme."}
    )
    assert state["decision"]["model"] == "best"
    assert state["decision"]["reason"] == "asked for by name"
    request = fake_engine.requests[-1]
    assert (request.temperature, request.max_tokens) == (0, 5)
    assert request.messages[0] == {"role": "system", "content": "Rhyme."}
    assert [message.type for message in state["messages"]] == ["human", "ai"]  # the prompt is not part of the talk
    graph.invoke(ask(EASY), context=Context(policy="strong"))
    assert fake_engine.started[-1] == "strong"
    graph.invoke(ask(EASY))
    assert (fake_engine.requests[-1].temperature, fake_engine.requests[-1].max_tokens) == (0.7, 512)


@pytest.mark.parametrize(
    ("context", "error"),
    [
        ({"model": "gpt"}, errors.UnknownModelError),
        ({"model": "poor"}, errors.ModelRejectedError),
        ({"policy": "coin"}, errors.UnknownChoiceError),
        ({"colour": "red"}, errors.InvalidContextError),
    ],
)
def test_bad_contexts(
    graph: Graph, fake_engine: type[FakeEngine], context: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        graph.invoke(ask(EASY), context=context)
    assert fake_engine.started == []


@pytest.mark.parametrize("messages", [[], [HumanMessage("")], [HumanMessage("  \n")], [AIMessage("I speak first")]])
def test_an_empty_question(graph: Graph, messages: list[Any]) -> None:
    given = {"messages": list(messages)}
    with pytest.raises(errors.EmptyQuestionError):
        graph.invoke(given)
    assert given == {"messages": messages}


def test_embedded_in_a_graph_with_a_context_of_its_own(graph: Graph) -> None:
    class Theirs(BaseModel):
        model: str = "another meaning of model"

    parent: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=Theirs)
    parent.add_node("chancellor", graph)
    parent.add_edge(START, "chancellor")
    state = parent.compile().invoke(ask(EASY), context=Theirs())
    assert state["decision"]["model"] == "light"


def test_a_single_node_in_another_graph_and_outside_of_one() -> None:
    assert complexity_node()(ask(HARD))["complexity"]["level"] == "high"
    chosen = selection_node(catalog(), "strong")({**ask(EASY), "complexity": {"level": "low"}})
    assert chosen["decision"]["model"] == "strong"
    assert chosen["decision"]["policy"] == "strong"

    def echo(text: str) -> Complexity:
        return Complexity(level="high", probability=None, reasons=[text], analyzer="echo")

    alone: StateGraph[Any, Any, Any, Any] = StateGraph(State).add_node("judge", complexity_node(echo))
    alone.add_edge(START, "judge")
    assert alone.compile().invoke(ask(EASY))["complexity"]["reasons"] == [EASY]


def test_subclassed_state_and_context(models: ChatModels) -> None:
    class Mine(State):
        customer: str

    class Settings(Context):
        colour: str = "blue"
        temperature: float = 0.1

    def generate(state: Mine, runtime: Runtime[Settings]) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{state['customer']} likes {runtime.context.colour}")]}

    made = create_chancellor(catalog(), generate=generate, state_schema=Mine, context_schema=Settings).compile()
    state = made.invoke({**ask(EASY), "customer": "Ada"}, context={"colour": "red"})
    assert state["messages"][-1].text == "Ada likes red"
    assert state["customer"] == "Ada"
    ours = create_chancellor(catalog(), generate=generation_node(models), context_schema=Settings).compile()
    ours.invoke(ask(EASY), context=Settings())
    assert FakeEngine.requests[-1].temperature == 0.1


def test_recorders_get_the_metrics_and_cannot_harm() -> None:
    noted: list[Metrics] = []

    def broken(metrics: Metrics) -> None:
        raise RuntimeError

    node = metrics_node([broken, noted.append])
    made = node({"messages": [AIMessage("hi", response_metadata={"inference_time_s": 2.0})]})
    assert noted == [made["metrics"]]
    assert made["metrics"]["inference_time_s"] == 2.0
    assert made["metrics"]["output_tokens"] is None


def test_the_drawing_shows_the_four_nodes(graph: Graph) -> None:
    drawn = graph.get_graph()
    assert [node for node in drawn.nodes if not node.startswith("__")] == NODES
    assert len(drawn.edges) == 5
