"""Tools, structured output and log probabilities with real engines: a model of 135 million parameters."""

import asyncio
import json
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from chancellor import Catalog, ChatVLLM, TrinityMiddleware, errors
from chancellor.engines import EnginePool, GenerationRequest, Guide
from tests.integration.conftest import INT8, TRANSFORMERS

pytestmark = pytest.mark.engine


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """What is known of a person."""

    name: str
    age: int = Field(ge=0, le=150)
    height_m: float
    tags: list[str]
    mood: Literal["good", "bad"]
    scores: dict[str, int]
    nickname: str | None = None


class Tree(BaseModel):
    """A tree of numbers."""

    value: float
    children: list["Tree"]


@tool
def count_leaves(tree: Tree) -> int:
    """Count the leaves of a tree."""
    return 1


@pytest.fixture
def model(catalog: Catalog, pool: EnginePool) -> ChatVLLM:
    return ChatVLLM(model=INT8, catalog=catalog, pool=pool, temperature=0, max_tokens=200)


@pytest.fixture(params=["vllm", "transformers"])
def either(request: pytest.FixtureRequest, model: ChatVLLM, pool: EnginePool) -> ChatVLLM:
    """The model in each kind of engine; unquantised in transformers."""
    if request.param == "vllm":
        return model
    own = request.getfixturevalue("transformers_catalog")
    return ChatVLLM(model=TRANSFORMERS, catalog=own, pool=pool, temperature=0, max_tokens=200)


def asked_before(place: str, number: str) -> list[BaseMessage]:
    return [
        HumanMessage(f"What is the weather in {place}?"),
        AIMessage("", tool_calls=[{"name": "get_weather", "args": {"location": place}, "id": number}]),
        ToolMessage(f"It is sunny in {place}.", tool_call_id=number),
        AIMessage(f"It is sunny in {place}."),
    ]


def test_the_model_may_call_a_tool(either: ChatVLLM) -> None:
    """So small a model does so only after examples."""
    history = [*asked_before("Paris", "1"), *asked_before("Rome", "2"), HumanMessage("What is the weather in Berlin?")]
    with_tools = either.bind_tools([get_weather, add])
    answer = with_tools.invoke(history)
    (call,) = answer.tool_calls
    assert (call["name"], set(call["args"])) == ("get_weather", {"location"})
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("", "tool_calls")
    total: AIMessageChunk | None = None
    for chunk in with_tools.stream(history):
        assert isinstance(chunk, AIMessageChunk)
        total = chunk if total is None else total + chunk
    assert total is not None
    assert [(one["name"], one["args"]) for one in total.tool_calls] == [(call["name"], call["args"])]
    assert either.bind_tools([get_weather], tool_choice="none").invoke(history).tool_calls == []


@pytest.mark.parametrize("choice", ["any", "add"])
def test_a_forced_call_is_valid(either: ChatVLLM, choice: str) -> None:
    for question in ("Add 3 and 4", "Who wrote Hamlet?", "aaaa"):
        forced = either.bind_tools([add], tool_choice=choice)
        answer = forced.invoke(question)
        (call,) = answer.tool_calls
        assert call["name"] == "add"
        assert {type(value) for value in call["args"].values()} == {int}
        assert set(call["args"]) == {"a", "b"}
        assert (answer.text, answer.response_metadata["finish_reason"]) == ("", "tool_calls")
        total: Any = None
        for chunk in forced.stream(question):
            total = chunk if total is None else total + chunk
        assert [(one["name"], one["args"]) for one in total.tool_calls] == [(call["name"], call["args"])]


def test_several_forced_calls(either: ChatVLLM) -> None:
    several = either.bind_tools([add, get_weather], tool_choice="any", parallel_tool_calls=True)
    calls = several.invoke("Add 3 and 4, and 5 and 6.").tool_calls
    assert calls
    wanted = {"add": {"a": int, "b": int}, "get_weather": {"location": str}}
    for call in calls:
        assert {name: type(value) for name, value in call["args"].items()} == wanted[call["name"]]


@pytest.mark.parametrize("question", ["Tell me about Napoleon.", "aaaaaaaaaa", "Write a very long essay about life."])
@pytest.mark.parametrize("schema", [Person, Tree])
def test_structured_output_is_always_valid(either: ChatVLLM, schema: type[BaseModel], question: str) -> None:
    assert isinstance(either.with_structured_output(schema).invoke(question), schema)


def test_calls_with_types_that_hold_themselves(either: ChatVLLM) -> None:
    question = "Give me a tree of the numbers 1, 2 and 3."
    assert isinstance(either.with_structured_output(Tree, method="function_calling").invoke(question), Tree)
    (call,) = either.bind_tools([count_leaves], tool_choice="any").invoke(question).tool_calls
    assert set(call["args"]) == {"tree"}
    Tree.model_validate(call["args"]["tree"])


def test_structured_output_by_a_call_and_raw(either: ChatVLLM) -> None:
    assert isinstance(either.with_structured_output(Person, method="function_calling").invoke("Napoleon"), Person)
    found = either.with_structured_output(Person.model_json_schema(), include_raw=True).invoke("Napoleon")
    Person.model_validate(found["parsed"])
    assert found["raw"].usage_metadata["output_tokens"] > 10
    assert found["parsing_error"] is None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_that_cannot_fit_is_an_error(either: ChatVLLM, method: str) -> None:
    short = either.model_copy(update={"max_tokens": 8}).with_structured_output(Person, method=method)
    with pytest.raises(OutputParserException, match="max_tokens"):
        short.invoke("Napoleon")
    with pytest.raises(OutputParserException, match="max_tokens"):
        list(short.stream("Napoleon"))


def test_guides(either: ChatVLLM) -> None:
    question = "Is the sky blue?"
    assert either.invoke(question, structured_outputs={"choice": ["yes", "no"]}).text in ("yes", "no")
    assert either.invoke(question, structured_outputs={"regex": "[0-9]{3}"}).text.isdigit()
    assert isinstance(json.loads(either.invoke(question, response_format={"type": "json_object"}).text), dict)
    broken = {"title": "t", "type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}
    with pytest.raises(errors.InvalidInputError, match="nowhere"):
        either.with_structured_output(broken).invoke(question)
    assert "blue" in either.invoke(question).text.lower()  # the engine goes on


def test_what_nobody_streams_is_one_delta(either: ChatVLLM, pool: EnginePool, catalog: Catalog) -> None:
    spec = either.catalog[either.model] if either.catalog is not None else catalog[INT8]
    for more in ({}, {"guide": Guide("json_object")}, {"logprobs": 1}):
        asked = GenerationRequest([{"role": "user", "content": "What is 2+2?"}], max_tokens=12, temperature=0, **more)
        (whole,) = pool.generate(spec, asked)
        assert whole.output_tokens == len(whole.token_ids) > 1
        streamed = list(pool.generate(spec, replace(asked, stream=True)))
        assert len(streamed) > 1
        assert "".join(delta.text for delta in streamed) == whole.text
        assert tuple(token for delta in streamed for token in delta.token_ids) == whole.token_ids


def test_log_probabilities(either: ChatVLLM) -> None:
    answer = either.invoke("What is 2+2?", logprobs=True, top_logprobs=2)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens).startswith(answer.text)
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) >= 2 for one in tokens)
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] for one in tokens)  # greedy
    assert sum(math.exp(one["logprob"]) for one in tokens[0]["top_logprobs"]) <= 1.001
    streamed: Any = None
    for chunk in either.stream("What is 2+2?", logprobs=True, top_logprobs=2):
        streamed = chunk if streamed is None else streamed + chunk
    assert [one["token"] for one in streamed.response_metadata["logprobs"]["content"]] == [
        one["token"] for one in tokens
    ]


def test_a_deadline_frees_the_engine(either: ChatVLLM, pool: EnginePool) -> None:
    either.invoke("hi", max_tokens=1)
    with pytest.raises(errors.GenerationTimeoutError, match=r"after 0\.2 s"):
        either.bind(ignore_eos=True, max_tokens=3000, timeout=0.2).invoke("Tell a story")
    for _ in range(300):
        if pool.stats()[either.model].running == 0:
            return
        asyncio.run(asyncio.sleep(0.1))
    pytest.fail("The request still runs.")


def test_an_agent(either: ChatVLLM, pool: EnginePool) -> None:
    from langchain.agents import create_agent

    from chancellor import ChatModels

    assert either.catalog is not None
    greedy = {name: either.model_copy(update={"model": name}) for name in ChatModels(either.catalog, pool=pool)}
    middleware = TrinityMiddleware(either.catalog, models=greedy)
    agent: Any = create_agent(model=either, tools=[get_weather, add], middleware=[middleware])
    history = [*asked_before("Paris", "1"), *asked_before("Rome", "2"), HumanMessage("What is the weather in Berlin?")]
    *_, call, result, answer = agent.invoke({"messages": history})["messages"]
    assert call.tool_calls[0]["name"] == "get_weather"
    assert result.content == f"It is sunny in {call.tool_calls[0]['args']['location']}."
    assert answer.text
    assert [one.response_metadata["decision"]["policy"] for one in (call, answer)] == ["trinity", "held"]
