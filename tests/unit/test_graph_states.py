"""Single nodes in graphs whose state is in another form than ours, and system prompts."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import START, StateGraph
from pydantic import BaseModel
from typing_extensions import TypedDict

from chancellor import ChatModels, Context, create_chancellor, errors
from chancellor.conversation import messages_in, prompted
from chancellor.engines import EnginePool
from chancellor.nodes import complexity_node, generation_node, metrics_node, selection_node
from tests.fakes import FakeEngine, catalog

EASY = "What is 2+2?"
FORMS: list[Any] = [
    EASY,
    ("user", EASY),
    {"role": "user", "content": EASY},
    HumanMessage(EASY),
    [EASY],
    [("system", "Be brief."), ("user", EASY)],
    [{"role": "user", "content": EASY}],
    (HumanMessage(EASY),),
]


class Plain(TypedDict, total=False):
    """Without `add_messages`: messages are what they were given as."""

    messages: Any
    complexity: Any
    decision: Any
    metrics: Any


@dataclass
class Data:
    messages: Any
    complexity: Any = None
    decision: Any = None
    metrics: Any = field(default=None)


class Model(BaseModel):
    messages: Any
    complexity: Any = None
    decision: Any = None
    metrics: Any = None


@pytest.fixture
def models(fake_engine: type[FakeEngine]) -> ChatModels:
    return ChatModels(catalog(), pool=EnginePool(fake_engine))


def graph_of(schema: Any, *nodes: Any) -> Any:
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(schema)
    builder.add_sequence([(node.name, node) for node in nodes])
    builder.add_edge(START, nodes[0].name)
    return builder.compile()


@pytest.mark.parametrize("messages", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("schema", [Plain, Data, Model])
async def test_messages_in_any_form(models: ChatModels, schema: Any, messages: Any) -> None:
    nodes = complexity_node(), selection_node(catalog()), generation_node(models), metrics_node()
    graph = graph_of(schema, *nodes)
    for state in (graph.invoke({"messages": messages}), await graph.ainvoke({"messages": messages})):
        (answer,) = state["messages"]
        assert answer.text == f"light says: {EASY}"
        assert (state["complexity"]["level"], state["decision"]["model"]) == ("low", "light")
        assert state["metrics"]["output_tokens"] == answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("messages", FORMS, ids=lambda form: type(form).__name__)
def test_each_node_alone(models: ChatModels, messages: Any) -> None:
    state = {"messages": messages}
    assert complexity_node()(state)["complexity"]["level"] == "low"
    assert selection_node(catalog())(state)["decision"]["model"] == "light"
    alone = generation_node({"best": models["best"]})
    assert alone(state)["messages"][0].text == f"best says: {EASY}"
    assert metrics_node()(state)["metrics"]["engine"] is None
    assert complexity_node()(FORMS[-2])["complexity"]["level"] == "low"  # the messages are all of the state


@pytest.mark.parametrize(
    ("state", "kind", "says"),
    [
        ({}, errors.InvalidInputError, "no `messages`; it has: nothing"),
        ({"question": EASY}, errors.InvalidInputError, "no `messages`; it has: question"),
        ({"messages": None}, errors.InvalidInputError, "no `messages`"),
        ({"messages": []}, errors.EmptyQuestionError, "no human message"),
        ({"messages": 7}, errors.InvalidInputError, "7' are no messages"),
        ({"messages": [{"text": EASY}]}, errors.InvalidInputError, "must contain 'role' and 'content'"),
        ({"messages": [("nobody", EASY)]}, errors.InvalidInputError, "nobody"),
    ],
)
def test_no_messages(models: ChatModels, state: Any, kind: type[Exception], says: str) -> None:
    for node in (complexity_node(), selection_node(catalog()), generation_node({"best": models["best"]})):
        with pytest.raises(kind, match=says):
            node(state)
    assert metrics_node()({})["metrics"]["output_tokens"] is None


@pytest.mark.parametrize(
    ("own", "sent"),
    [
        ([], ["system: Rhyme.", f"user: {EASY}"]),
        ([SystemMessage("Be brief.")], ["system: Rhyme.\n\nBe brief.", f"user: {EASY}"]),
        ([SystemMessage([{"type": "text", "text": "Be brief."}])], ["system: Rhyme.\nBe brief.", f"user: {EASY}"]),
    ],
)
def test_a_system_prompt_is_one_message_with_the_conversations_own(
    models: ChatModels, own: list[Any], sent: list[str]
) -> None:
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile()
    state = graph.invoke({"messages": [*own, HumanMessage(EASY)]}, context=Context(system_prompt="Rhyme."))
    asked = FakeEngine.requests[-1].messages
    assert [f"{message['role']}: {message['content']}" for message in asked] == sent
    assert [message.content for message in state["messages"][:-1]] == [message.content for message in own] + [EASY]


def test_a_prompt_keeps_what_its_message_has() -> None:
    own = SystemMessage("Be brief.", id="1", additional_kwargs={"__openai_role__": "developer"})
    (made,) = prompted([own], "Rhyme.")
    assert (made.content, made.id, made.additional_kwargs) == ("Rhyme.\n\nBe brief.", "1", own.additional_kwargs)
    assert prompted([own], None) == [own]
    assert messages_in({"messages": [own]}) == [own]


@pytest.mark.parametrize("schema", [None, dict, dict[str, Any]])
def test_a_context_that_is_not_ours(schema: Any, models: ChatModels) -> None:
    builder = create_chancellor(catalog(), generate=generation_node(models), context_schema=schema)
    found = builder.compile().invoke({"messages": EASY}, context={"chancellor": {"model": "strong"}})
    assert found["decision"]["model"] == "strong"
