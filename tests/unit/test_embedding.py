"""The graph inside of others, and under checkpointers: interrupts, time travel, commands."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from chancellor import ChatModels, Context, create_chancellor
from chancellor.engines import EnginePool
from chancellor.errors import InvalidContextError
from chancellor.nodes import generation_node
from tests.fakes import FakeEngine, catalog
from tests.unit.test_graph import EASY, HARD, NODES, Graph, ask

THREAD: Any = {"configurable": {"thread_id": "one"}}


@pytest.fixture(params=["memory", "sqlite"])
def saver(request: pytest.FixtureRequest) -> Iterator[BaseCheckpointSaver[Any]]:
    """With strict msgpack: nothing but the types that LangGraph calls safe is read back."""
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    if request.param == "memory":
        yield InMemorySaver(serde=strict)
    else:
        with SqliteSaver.from_conn_string(":memory:") as sqlite:
            sqlite.serde = strict
            yield sqlite


@pytest.fixture
def builder(fake_engine: type[FakeEngine]) -> StateGraph[Any, Any, Any, Any]:
    models = ChatModels(catalog(), pool=EnginePool(fake_engine))
    return create_chancellor(catalog(), generate=generation_node(models))


@pytest.mark.parametrize("node", NODES)
def test_interrupt_before_any_node(
    builder: StateGraph[Any, Any, Any, Any], saver: BaseCheckpointSaver[Any], node: str
) -> None:
    graph = builder.compile(checkpointer=saver, interrupt_before=[node])
    graph.invoke(ask(EASY), THREAD)
    assert graph.get_state(THREAD).next == (node,)
    state = graph.invoke(None, THREAD)
    assert state["messages"][-1].text == f"light says: {EASY}"
    assert graph.get_state(THREAD).next == ()


def test_time_travel_and_forks(builder: StateGraph[Any, Any, Any, Any], saver: BaseCheckpointSaver[Any]) -> None:
    graph: Graph = builder.compile(checkpointer=saver)
    graph.invoke(ask(EASY), THREAD)
    before = next(one for one in graph.get_state_history(THREAD) if one.next == ("generate",))
    again = graph.invoke(None, before.config)  # from there on, as it was
    assert again["messages"][-1].text == f"light says: {EASY}"
    decision = {**before.values["decision"], "model": "strong"}
    fork = graph.update_state(before.config, {"decision": decision})
    assert graph.invoke(None, fork)["messages"][-1].text == f"strong says: {EASY}"
    assert before.values["decision"]["model"] == "light"


def test_a_human_decides_by_a_command(fake_engine: type[FakeEngine], saver: BaseCheckpointSaver[Any]) -> None:
    models = ChatModels(catalog(), pool=EnginePool(fake_engine))

    def select(_: dict[str, Any]) -> dict[str, Any]:
        return {"decision": {"model": interrupt("Which model?"), "trinity_score": 99.0}}

    graph = create_chancellor(catalog(), select=select, generate=generation_node(models)).compile(checkpointer=saver)
    asked = graph.invoke(ask(EASY), THREAD)
    assert asked["__interrupt__"][0].value == "Which model?"
    assert graph.invoke(Command(resume="best"), THREAD)["messages"][-1].text == f"best says: {EASY}"


def test_a_node_may_return_a_command(builder: StateGraph[Any, Any, Any, Any]) -> None:
    def refuse(state: dict[str, Any]) -> Command[Any]:
        answer = AIMessage(f"Not today: {state['messages'][-1].text}")
        return Command(update={"messages": [answer]}, goto="record_metrics")

    made = create_chancellor(catalog(), generate=refuse).compile()
    state = made.invoke(ask(EASY))
    assert state["messages"][-1].text == f"Not today: {EASY}"
    assert state["metrics"]["engine"] is None


@dataclass
class Theirs:
    """A context that has nothing to do with ours, but for the names."""

    model: str = "T"
    temperature: str = "warm"


class Outer(TypedDict, total=False):
    topic: str
    summary: str


@dataclass
class Carrying(Theirs):
    """One with a part that is ours."""

    chancellor: Any = field(default_factory=lambda: {"model": "best"})


CONTEXTS: list[Any] = [
    (Theirs(), None),
    ({"model": 7}, None),
    ({"chancellor": {"model": "best"}}, "best"),
    (Carrying(), "best"),
    (Carrying(chancellor=Context(model="best")), "best"),
]


@pytest.mark.parametrize(("context", "model"), [*CONTEXTS, (None, None)])
def test_in_a_parent_with_its_own_state_and_context(
    builder: StateGraph[Any, Any, Any, Any], context: Any, model: str | None
) -> None:
    graph = builder.compile()

    def research(state: Outer) -> Outer:
        found = graph.invoke(ask(state["topic"]))  # with the parent's context, as LangGraph hands it on
        return {"summary": str(found["messages"][-1].text)}

    parent: StateGraph[Any, Any, Any, Any] = StateGraph(Outer, context_schema=type(context) if context else None)
    parent.add_node("research", research)
    parent.add_edge(START, "research")
    state = parent.compile().invoke({"topic": HARD}, context=context)
    assert state["summary"] == f"{model or 'strong'} says: {HARD}"


@pytest.mark.parametrize(("context", "model"), CONTEXTS)
async def test_as_a_subgraph_whose_tokens_stream_through(
    builder: StateGraph[Any, Any, Any, Any], saver: BaseCheckpointSaver[Any], context: Any, model: str | None
) -> None:
    from chancellor import State

    parent: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=type(context))
    parent.add_node("inner", builder.compile())
    parent.add_edge(START, "inner")
    graph = parent.compile(checkpointer=InMemorySaver())
    stream = graph.astream(ask(EASY), THREAD, context=context, stream_mode="messages", subgraphs=True)
    pieces = [piece[1][0].text async for piece in cast("Any", stream)]
    assert "".join(map(str, pieces)) == f"{model or 'light'} says: {EASY}"
    kept = (await graph.aget_state(THREAD)).values
    assert kept["decision"]["model"] == (model or "light")
    assert isinstance(kept["messages"][0], HumanMessage)


class Ours(Context):
    """Our context, and a setting of the graph that is embedded."""

    colour: str
    """Has no default."""


@dataclass
class Holder:
    chancellor: Any


@pytest.mark.parametrize(
    "context",
    [
        {"chancellor": {"model": "best", "colour": "red"}},
        {"chancellor": Ours(model="best", colour="red")},
        Holder({"model": "best", "colour": "red"}),
        Holder(Ours(model="best", colour="red")),
        Ours(model="best", colour="red"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_context_with_fields_of_the_embedded_graphs_own(
    fake_engine: type[FakeEngine], context: Any, *, asynchronous: bool
) -> None:
    from chancellor import State

    seen: list[Ours] = []

    def analyze(_: dict[str, Any], runtime: Runtime[Any]) -> dict[str, Any]:
        seen.append(Ours.of(runtime.context))
        return {"complexity": {"level": "low"}}

    models = ChatModels(catalog(), pool=EnginePool(fake_engine))
    made = create_chancellor(catalog(), analyze=analyze, generate=generation_node(models), context_schema=Ours)
    parent: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=type(context))
    parent.add_node("inner", made.compile())
    parent.add_edge(START, "inner")
    graph = parent.compile()
    state = (
        await graph.ainvoke(ask(EASY), context=context) if asynchronous else graph.invoke(ask(EASY), context=context)
    )
    assert state["messages"][-1].text == f"best says: {EASY}"
    assert seen == [Ours(model="best", colour="red")]


def test_such_fields_are_checked(fake_engine: type[FakeEngine]) -> None:
    from chancellor import State

    models = ChatModels(catalog(), pool=EnginePool(fake_engine))
    generate = generation_node(models)
    parent: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=dict)
    parent.add_node("theirs", create_chancellor(catalog(), generate=generate, context_schema=Ours).compile())
    parent.add_edge(START, "theirs")
    graph = parent.compile()
    with pytest.raises(InvalidContextError, match="color"):
        graph.invoke(ask(EASY), context={"chancellor": {"colour": "red", "color": "red"}})
    assert graph.invoke(ask(EASY), context={"topic": "x"})["decision"]["model"] == "light"  # nothing of ours
    plain = create_chancellor(catalog(), generate=generate).compile()  # the same node, in a graph with our context
    with pytest.raises(InvalidContextError, match="colour"):
        plain.invoke(ask(EASY), context={"colour": "red"})
