"""vLLM's parsers of calls and of thoughts, on what an engine makes: a tiny model that a guide makes say it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool

from chancellor import Catalog, ChatVLLM, EngineOptions, ModelSpec
from chancellor.engines import EnginePool
from tests.tiny import TEMPLATE

pytestmark = pytest.mark.engine

THOUGHT = "One and one is a classic."
CALLS = "[add(a=1, b=1), add(a=20, b=3)]"
MARKS = ("<think>", "</think>")


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def thinker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """The tiny model with marks of thoughts, and a template that knows tools; and what makes it use the marks."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("thinker") / "thinker"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(MARKS))
    tokenizer.chat_template = "{% if tools %}<|system|>{{ tools | length }} tools<|end|>{% endif %}" + TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder, {tokenizer.convert_tokens_to_ids(mark): 100.0 for mark in MARKS}


@pytest.fixture
def model(thinker: tuple[Path, dict[int, float]], pool: EnginePool) -> ChatVLLM:
    folder, bias = thinker
    engine = EngineOptions(
        dtype="float32",
        max_model_len=512,
        kv_cache_gib=0.1,
        reasoning_parser="deepseek_r1",
        tool_parser="pythonic",
        vllm={"structured_outputs_config": {"enable_in_reasoning": True}},  # else a guide leaves thoughts alone
    )
    catalog = Catalog([ModelSpec(name="thinker", source=str(folder), trinity=99, engine=engine)])
    return ChatVLLM(model="thinker", catalog=catalog, pool=pool, temperature=0, max_tokens=200, logit_bias=bias)


def forced(text: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": "".join(f"\\{one}" if one in "()[]." else one for one in text)}}


def asked(model: ChatVLLM, text: str, *, stream: bool, **more: Any) -> AIMessage:
    with_tools = model.bind_tools([add], **forced(text), **more)
    if not stream:
        return with_tools.invoke("1+1?")
    chunks = list(with_tools.stream("1+1?"))
    total: Any = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert len(chunks) > 1
    assert isinstance(total, AIMessageChunk)
    return total


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_calls(model: ChatVLLM, stream: bool) -> None:
    answer = asked(model, f"<think>{THOUGHT}</think>{CALLS}", stream=stream)
    assert answer.additional_kwargs == {"reasoning_content": THOUGHT}
    assert answer.text == ""
    assert [(one["name"], one["args"]) for one in answer.tool_calls] == [
        ("add", {"a": 1, "b": 1}),
        ("add", {"a": 20, "b": 3}),
    ]
    assert len({one["id"] for one in answer.tool_calls} - {None}) == 2
    assert answer.invalid_tool_calls == []
    assert answer.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_text(model: ChatVLLM, stream: bool) -> None:
    answer = asked(model, f"<think>{THOUGHT}</think>It is two.", stream=stream)
    assert (answer.additional_kwargs, answer.text) == ({"reasoning_content": THOUGHT}, "It is two.")
    assert answer.tool_calls == []
    assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most(model: ChatVLLM, stream: bool) -> None:
    answer = asked(model, f"<think>{THOUGHT}</think>{CALLS}", stream=stream, parallel_tool_calls=False)
    assert [(one["name"], one["args"]) for one in answer.tool_calls] == [("add", {"a": 1, "b": 1})]
