"""Structured output of answers that max_tokens cuts off."""

from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from chancellor import ChatVLLM
from chancellor.engines import Delta, EnginePool, GenerationRequest, ToolCallPiece
from tests.fakes import FakeEngine, catalog


class Person(BaseModel):
    """What is known of a person."""

    name: str


class CutEngine(FakeEngine):
    """Ends each answer by its length: a call if there are tools, else JSON."""

    pieces: ClassVar[tuple[str, ...]] = ('{"name"', ': "Ada')

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        if request.tools:
            yield Delta("", tool_calls=(ToolCallPiece(0, "call_1", request.tools[0]["function"]["name"]),))
        for piece in self.pieces:
            yield Delta("", tool_calls=(ToolCallPiece(0, arguments=piece),)) if request.tools else Delta(piece)
        yield Delta("", finish_reason="length", input_tokens=3, output_tokens=9, engine=self.kind)


@pytest.fixture
def model() -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(CutEngine))


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Person, Person.model_json_schema()])
async def test_it_is_an_error_whatever_the_method(model: ChatVLLM, schema: Any, method: str) -> None:
    asked = model.with_structured_output(schema, method=method)
    for call in (lambda: asked.invoke("who?"), lambda: list(asked.stream("who?"))):
        with pytest.raises(OutputParserException, match="max_tokens") as raised:
            call()
    assert raised.value.llm_output is not None
    with pytest.raises(OutputParserException, match="max_tokens") as raised:
        await asked.ainvoke("who?")
    assert raised.value.llm_output == '{"name": "Ada'
    with pytest.raises(OutputParserException, match="max_tokens"):
        [one async for one in asked.astream("who?")]
    found = model.with_structured_output(schema, method=method, include_raw=True).invoke("who?")
    assert isinstance(found["parsing_error"], OutputParserException)
    assert found["parsed"] is None


@pytest.mark.parametrize("pieces", [(), ('{"name"',)])
def test_a_call_without_its_arguments_is_none(
    model: ChatVLLM, pieces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No arguments are what a call of a tool without parameters has, too."""
    monkeypatch.setattr(CutEngine, "pieces", pieces)
    answer = model.bind_tools([Person], tool_choice="Person").invoke("who?")
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls == []
    (invalid,) = answer.invalid_tool_calls
    assert (invalid["name"], invalid["args"]) == ("Person", "".join(pieces))
