"""Streamed tool calls, however the engine cuts them into deltas."""

import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool

from chancellor import ChatVLLM
from chancellor.chat.messages import chunk_of
from chancellor.engines import Delta, EnginePool, GenerationRequest, ToolCallPiece
from chancellor.engines.answers.calls import CLOSE, OPEN, TaggedCalls
from chancellor.engines.joining import joined
from tests.fakes import FakeEngine, catalog

CALL = f'{OPEN}\n{{"name": "add", "arguments": {{"a": 1, "b": 2}}}}\n{CLOSE}'
TWO = f'{CALL}\n{OPEN}\n{{"name": "add", "arguments": {{"a": 30, "b": 4}}}}\n{CLOSE}'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class CallingEngine(FakeEngine):
    """Calls before it has a tool's result, and answers after; in deltas of so many characters."""

    size: ClassVar[int] = 1
    text: ClassVar[str] = CALL

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        answered = request.messages[-1]["role"] == "tool"
        text = f"It is {request.messages[-1]['content']}." if answered else self.text
        size = self.size if request.stream else len(text)
        reader = TaggedCalls()
        for start in range(0, len(text), size):
            last = start + size >= len(text)
            end: dict[str, Any] = {"finish_reason": "stop", "input_tokens": 3, "output_tokens": 9} if last else {}
            yield reader.read(Delta(text[start : start + size], **end))


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(CallingEngine))


def both(name: str = "add", arguments: str = "{}") -> tuple[ToolCallPiece, ...]:
    return ToolCallPiece(0, "call_1", name), ToolCallPiece(0, arguments=arguments), ToolCallPiece(1, "call_2", "now")


def test_a_chunk_has_one_piece_of_each_call() -> None:
    delta = Delta("", tool_calls=both())
    for one in (delta, *joined([delta]), *joined([delta, Delta("")])):
        chunks = chunk_of(one, None).tool_call_chunks
        assert [(piece["index"], piece["id"], piece["name"], piece["args"]) for piece in chunks] == [
            (0, "call_1", "add", "{}"),
            (1, "call_2", "now", ""),
        ]


@pytest.mark.parametrize("size", [*range(1, 80), len(TWO)])
async def test_deltas_of_every_size(model: ChatVLLM, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallingEngine, "size", size)
    monkeypatch.setattr(CallingEngine, "text", TWO)
    asked = model.bind_tools([add])
    total: AIMessageChunk | None = None
    async for chunk in asked.astream("1+2?"):
        assert isinstance(chunk, AIMessageChunk)
        assert len({one["index"] for one in chunk.tool_call_chunks}) == len(chunk.tool_call_chunks)
        total = chunk if total is None else total + chunk
    assert total is not None
    assert [(one["name"], one["args"]) for one in total.tool_calls] == [
        ("add", {"a": 1, "b": 2}),
        ("add", {"a": 30, "b": 4}),
    ]
    assert total.invalid_tool_calls == []
    assert all(one["id"] for one in total.tool_calls)


@pytest.mark.parametrize("version", [None, "v0", "v1"])
@pytest.mark.parametrize("size", [1, 7, len(CALL)])
def test_an_agent_that_streams(
    model: ChatVLLM, size: int, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CallingEngine, "size", size)
    own = model.model_copy(update={"output_version": version})
    agent: Any = create_agent(own, [add])
    values: dict[str, Any] = {}
    said = ""
    for mode, part in agent.stream({"messages": "1+2?"}, stream_mode=["messages", "values"]):
        if mode == "values":
            values = part
        elif isinstance(part[0], AIMessageChunk):
            said += str(part[0].text)
    _, call, result, answer = values["messages"]
    assert [(one["name"], one["args"]) for one in call.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert isinstance(result, ToolMessage)
    assert (result.content, answer.text, said) == ("3", "It is 3.", "It is 3.")


@pytest.mark.parametrize("version", [None, "v0", "v1"])
def test_an_agent_reads_its_own_calls(model: ChatVLLM, version: str | None, fake_engine: type[FakeEngine]) -> None:
    agent: Any = create_agent(model.model_copy(update={"output_version": version}), [add])
    messages = agent.invoke({"messages": "1+2?"})["messages"]
    assert messages[-1].text == "It is 3."
    assert isinstance(messages[-1].content, list) == (version == "v1")
    history = fake_engine.requests[-1].messages
    assert [one["role"] for one in history] == ["user", "assistant", "tool"]
    assert history[1]["content"] == ""
    (call,) = history[1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}


def test_a_model_reads_what_it_said_in_blocks(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    said = AIMessage("It is 3.", response_metadata={"output_version": "v1"})
    model.invoke([HumanMessage("1+2?"), AIMessage(said.content_blocks), HumanMessage("Sure?")])  # type: ignore[arg-type]
    assert fake_engine.requests[-1].messages[1] == {"role": "assistant", "content": "It is 3."}
