"""JSON schemas of every shape, as the answer's form in a chat model."""

from typing import Any

import pytest

from chancellor import ChatVLLM
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}},
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"enum": ["a", "b"]},
    {"const": "a"},
    {"type": ["string", "null"]},
    {"type": "null"},
]


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine))


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_without_a_title(model: ChatVLLM, schema: dict[str, Any]) -> None:
    model.with_structured_output(schema, include_raw=True).invoke("hi")
    guide = FakeEngine.requests[-1].guide
    assert guide is not None
    assert (guide.kind, guide.value) == ("json_schema", schema)


@pytest.mark.parametrize(
    "schema", [*SCHEMAS, {"title": "Point", "properties": {"x": {"type": "integer"}}}, {}], ids=str
)
def test_as_openai_and_vllm_name_them(model: ChatVLLM, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for option in ({"response_format": form}, {"structured_outputs": {"json": schema}}):
        model.invoke("hi", **option)
        guide = FakeEngine.requests[-1].guide
        assert guide is not None
        assert (guide.kind, guide.value) == ("json_schema", schema)
