"""What users get wrong most often: each gets an error that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from pydantic import ValidationError

from chancellor import Catalog, ChatModels, ChatVLLM, EngineOptions, ModelSpec, create_chancellor, errors
from chancellor.engines import EnginePool, remote_server
from chancellor.nodes import complexity_node, generation_node
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
        ([IMAGE], {}, errors.EmptyQuestionError, "empty"),
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
