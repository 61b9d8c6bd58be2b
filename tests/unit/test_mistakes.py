"""What users get wrong most often: each gets an error that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from pydantic import ValidationError

from chancellor import Catalog, ChatModels, ChatVLLM, EngineOptions, ModelSpec, State, create_chancellor, errors
from chancellor.engines import EnginePool, remote_server
from chancellor.nodes import complexity_node, generation_node, selection_node
from tests.fakes import FakeEngine, catalog

IMAGE = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def run(fake_engine: type[FakeEngine]) -> Callable[..., Any]:
    models = ChatModels(catalog(), pool=EnginePool(fake_engine))
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile()
    return lambda messages="hi", **context: graph.invoke({"messages": messages}, context=context)


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine))


def test_a_string_for_messages_is_fine(run: Callable[..., Any]) -> None:
    assert run("hi")["messages"][-1].text == "light says: hi"


@pytest.mark.parametrize(
    ("messages", "context", "kind", "says"),
    [
        ([], {}, errors.EmptyQuestionError, "no human message"),
        ("  ", {}, errors.EmptyQuestionError, "empty"),
        ([AIMessage("hi")], {}, errors.EmptyQuestionError, "no human message"),
        ([HumanMessage([{"type": "text", "text": " "}])], {}, errors.EmptyQuestionError, "empty"),
        ([IMAGE], {}, errors.InvalidInputError, "other than text"),  # by the model: others may take images
        ([IMAGE, HumanMessage("hi")], {}, errors.InvalidInputError, "other than text"),
        ("hi", {"temprature": 0}, errors.InvalidContextError, "temperature, max_tokens"),
        ("hi", {"temperature": 3}, errors.InvalidContextError, "less than or equal to 2"),
        ("hi", {"max_tokens": 0}, errors.InvalidContextError, "greater than or equal to 1"),
        ("hi", {"model": "gpt"}, errors.UnknownModelError, "light, best"),
        ("hi", {"model": "poor"}, errors.ModelRejectedError, "below the minimum"),
        ("hi", {"policy": "cheap"}, errors.UnknownChoiceError, "trinity, light, strong"),
    ],
)
def test_runs(run: Callable[..., Any], messages: Any, context: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        run(messages, **context)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda m: m.invoke("hi", temprature=0), errors.InvalidInputError, "takes no temprature"),
        (lambda m: m.invoke("hi", temperature=9), errors.InvalidInputError, "less than or equal to 2"),
        (lambda m: m.invoke("hi", max_tokens=0), errors.InvalidInputError, "greater than or equal to 1"),
        (lambda m: m.invoke("hi", model="gpt"), errors.UnknownModelError, "light, best"),
        (lambda m: m.invoke("hi", stop=5), errors.InvalidInputError, "stop is 5: .*valid list"),
        (lambda m: m.invoke("hi", stop=["a", 5]), errors.InvalidInputError, "valid string"),
        (lambda m: m.invoke("hi", stop=[""]), errors.InvalidInputError, "at least 1 character"),
        (lambda m: m.invoke([IMAGE]), errors.InvalidInputError, "leave images and files out"),
        (lambda m: m.bind_tools([add], tool_choice="sub"), errors.UnknownChoiceError, "auto, any, none, add"),
        (lambda m: m.bind_tools([], tool_choice="any"), errors.InvalidInputError, "there are no tools"),
        (
            lambda m: m.bind_tools([add], tool_choice={"type": "function"}),
            errors.UnknownChoiceError,
            "auto, any, none, add",
        ),
        (
            lambda m: m.bind_tools([add], tool_choice={"type": "x", "name": "add"}),
            errors.UnknownChoiceError,
            "none, add; or",
        ),
        (lambda m: m.bind_tools([add], tool_choice={"any": {}}), errors.UnknownChoiceError, "none, add; or"),
        (lambda m: m.bind_tools([add], tool_choice={"name": 5}), errors.UnknownChoiceError, "none, add; or"),
        (
            lambda m: m.bind_tools([add], tool_choice={"type": "function", "function": "add"}),
            errors.UnknownChoiceError,
            '"function": {"name": ...}}',
        ),
        (
            lambda m: m.bind_tools([add], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []}),
            errors.UnknownChoiceError,
            "pass no others",
        ),
        (
            lambda m: m.bind_tools([add], tool_choice={"type": "function", "function": {"name": "sub"}}),
            errors.UnknownChoiceError,
            "auto, any, none, add",
        ),
        (lambda m: m.bind_tools(["add"]), errors.InvalidInputError, "cannot be used as a tool"),
        (lambda m: m.with_structured_output(None), errors.InvalidInputError, "no schema"),
        (lambda m: m.with_structured_output({"a": 1}), errors.InvalidInputError, "no schema of an answer"),
        (lambda m: m.with_structured_output(dict, method="xml"), errors.UnknownChoiceError, "json_schema"),
        (lambda m: m.with_structured_output(add, mode="strict"), errors.InvalidInputError, "takes no mode"),
        (lambda m: m.invoke("hi", response_format="json"), errors.InvalidInputError, "json_object"),
        (lambda m: m.with_structured_output({"type": 5}), errors.InvalidInputError, "no schema of an answer"),
        (
            lambda m: m.with_structured_output({"type": ["object", "null"]}, method="function_calling"),
            errors.InvalidInputError,
            "cannot be used as a tool",
        ),
        (lambda m: m.invoke("hi", structured_outputs={"a": 1}), errors.InvalidInputError, "exactly one of"),
        (lambda m: m.invoke("hi", structured_outputs="json"), errors.InvalidInputError, "exactly one of"),
        (lambda m: m.invoke("hi", structured_outputs=5), errors.InvalidInputError, "exactly one of"),
        (lambda m: m.invoke("hi", structured_outputs={"json": "{"}), errors.InvalidInputError, "no JSON schema"),
        (lambda m: m.invoke("hi", structured_outputs={"json": 5}), errors.InvalidInputError, "no schema of an answer"),
        (lambda m: m.invoke("hi", response_format={"type": "json_schema"}), errors.InvalidInputError, "json_object"),
        (
            lambda m: m.invoke("hi", response_format={"type": "json_schema", "json_schema": "x"}),
            errors.InvalidInputError,
            "json_object",
        ),
    ],
)
def test_calls(model: ChatVLLM, call: Callable[[ChatVLLM], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call(model)


def test_tools_of_the_same_name(model: ChatVLLM) -> None:
    other = {"type": "function", "function": {"name": "add", "description": "Another.", "parameters": {}}}
    with pytest.raises(errors.InvalidInputError, match="Two tools are called 'add'"):
        model.bind_tools([add, other]).invoke("hi")


def test_a_field_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        ChatVLLM(model="light", catalog=catalog(), temprature=0)  # type: ignore[call-arg]
    with pytest.raises(errors.UnknownChoiceError, match="analyzer"):
        complexity_node("oracle")


def test_models_on_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="no base_url"):
        ModelSpec(name="far", source="m", trinity=99, engine=EngineOptions(kind="openai"))
    there = EngineOptions(kind="openai", base_url="http://127.0.0.1:9/v1", api_key_env="FAR_KEY")
    with pytest.raises(ValidationError, match="leave scheme out"):
        ModelSpec(name="far", source="m", trinity=99, scheme="int8", engine=there)
    far = Catalog([ModelSpec(name="far", source="m", trinity=99, engine=there)])
    graph = create_chancellor(far).compile()
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(errors.EngineStartError, match="export FAR_KEY"):
        graph.invoke({"messages": "hi"})
    monkeypatch.setenv("FAR_KEY", "x")
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.1)
    with pytest.raises(errors.EngineStartError, match="cannot be reached"):
        ChatModels(far, pool=EnginePool())["far"].invoke("x")


@pytest.mark.parametrize(
    "analyze",
    [
        complexity_node(lambda _: {"level": "extreme", "probability": None, "reasons": [], "analyzer": "mine"}),  # type: ignore[typeddict-item]
        complexity_node(lambda _: "high"),  # type: ignore[arg-type,return-value]
        lambda _: {"complexity": "high"},
        lambda _: {"complexity": {"level": "extreme"}},
        lambda _: {"complexity": {"hard": True}},
    ],
)
def test_what_the_first_node_leaves(analyze: Any) -> None:
    graph = create_chancellor(catalog(), analyze=analyze).compile()
    with pytest.raises(errors.InvalidInputError, match=r"is no complexity.*low, medium, high"):
        graph.invoke({"messages": "hi"})


@pytest.mark.parametrize("decision", ["light", {"name": "light"}, {"model": None}, 5])
def test_what_the_second_node_leaves(decision: Any) -> None:
    graph = create_chancellor(catalog(), select=lambda _: {"decision": decision}).compile()
    with pytest.raises(errors.InvalidInputError, match="is no decision: it names no `model`"):
        graph.invoke({"messages": "hi"})


def test_a_decision_of_somebody_elses_before_ours() -> None:
    called = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    state = {"messages": ["hi", called, ToolMessage("3", tool_call_id="1")], "decision": "approved"}
    assert selection_node(catalog())(state)["decision"]["model"] == "light"


@pytest.mark.parametrize("context", ["fast", 5, ["fast"], {"chancellor": "fast"}])
def test_what_is_no_context(run: Callable[..., Any], context: Any) -> None:
    state = {"messages": "hi"}
    parent: StateGraph[Any, Any, Any, Any] = StateGraph(State, context_schema=dict)
    parent.add_node("inner", create_chancellor(catalog(), generate=lambda _: {}).compile())
    parent.add_edge(START, "inner")
    graphs: list[Any] = [parent.compile()]
    if not isinstance(context, dict):  # which LangGraph makes a Context of
        graphs.append(create_chancellor(catalog()).compile())
    for graph in graphs:
        with pytest.raises(errors.InvalidContextError, match=r"is not .*the context of this run.*\n.*max_tokens"):
            graph.invoke(state, context=context)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"generate": {"light": FakeListChatModel(responses=["x"])}}, "generate is .*generation_node"),
        ({"generate": FakeListChatModel(responses=["x"])}, "generate is .*generation_node"),
        ({"select": "light"}, "select is 'light'.*selection_node"),
        ({"analyze": "rules"}, "analyze is 'rules'.*complexity_node"),
        ({"record": 5}, "record is '5'.*metrics_node"),
    ],
)
def test_what_is_no_node(given: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=f"(?s){says}"):
        create_chancellor(catalog(), **given)


def test_what_is_no_catalog() -> None:
    makers: list[Callable[[Any], Any]] = [create_chancellor, Catalog.load]
    for make in makers:
        for wrong in (5, ["light"], object()):
            with pytest.raises(errors.CatalogFileError, match=r"is no catalog\.\nPass a Catalog"):
                make(wrong)


def test_what_are_no_models(model: ChatVLLM) -> None:
    with pytest.raises(errors.InvalidInputError, match="A ChatVLLM has no names of models"):
        generation_node(model)  # type: ignore[arg-type]
    graph = create_chancellor(catalog(), generate=generation_node({"light": RunnableLambda(lambda _: 5)})).compile()
    with pytest.raises(
        errors.InvalidInputError, match="'light' answered with an object of type int, which is no message"
    ):
        graph.invoke({"messages": "hi"})
