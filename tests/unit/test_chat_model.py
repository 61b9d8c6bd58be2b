import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from pydantic import ValidationError

from chancellor import ChatModels, ChatVLLM, errors
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine), temperature=0, max_tokens=9)


def test_invoke(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    answer = model.invoke("hello", stop=["x"], max_tokens=7)
    assert answer.text == "light says: hello"
    assert answer.usage_metadata == {
        "input_tokens": 3,
        "output_tokens": 3,
        "total_tokens": 6,
        "input_token_details": {"cache_read": 1},
    }
    request = fake_engine.requests[-1]
    assert (request.temperature, request.max_tokens, request.stop, request.stream) == (0, 7, ("x",), False)


def test_stop_texts(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    own = model.model_copy(update={"stop": ["own"]})
    asked: list[tuple[ChatVLLM, Any, tuple[str, ...]]] = [
        (model, None, ()),
        (model, "###", ("###",)),  # as OpenAI's servers take it
        (model, ["a", "b"], ("a", "b")),
        (own, None, ("own",)),
        (own, "###", ("###",)),
        (own, [], ()),
    ]
    for one, stop, wanted in asked:
        one.invoke("hello", stop=stop)
        assert fake_engine.requests[-1].stop == wanted
        list(one.bind(stop=stop).stream("hello"))
        assert fake_engine.requests[-1].stop == wanted


def test_stream_adds_up_to_the_same_message(model: ChatVLLM) -> None:
    total: AIMessageChunk | None = None
    for chunk in model.stream("hello"):
        total = chunk if total is None else total + chunk
    whole = model.invoke("hello")
    assert total is not None
    assert total.text == whole.text
    assert total.usage_metadata == whole.usage_metadata
    assert total.response_metadata == whole.response_metadata


def test_async_twins(model: ChatVLLM) -> None:
    async def both() -> tuple[str, str]:
        answer = await model.ainvoke("hello")
        return str(answer.text), "".join([str(chunk.text) async for chunk in model.astream("hello")])

    assert asyncio.run(both()) == ("light says: hello",) * 2


def test_messages_become_roles(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    model.invoke([SystemMessage("be brief"), HumanMessage([{"type": "text", "text": "hello"}])])
    assert fake_engine.requests[-1].messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


def test_leaving_a_stream_aborts_the_request(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    async def leave() -> None:
        stream = model.astream("one two three four five")
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        for _ in range(100):
            if fake_engine.aborted:
                return
            await asyncio.sleep(0.02)

    fake_engine.delta_s = 0.2
    asyncio.run(leave())
    assert fake_engine.aborted == ["one two three four five"]


def test_bad_arguments() -> None:
    with pytest.raises(errors.UnknownModelError):
        ChatVLLM(model="gpt", catalog=catalog())
    with pytest.raises(errors.ModelRejectedError):
        ChatVLLM(model="poor", catalog=catalog())
    with pytest.raises(ValidationError, match="temperature"):
        ChatVLLM(model="light", catalog=catalog(), temperature=5)


def test_chat_models_hold_the_eligible_ones() -> None:
    assert list(ChatModels(catalog())) == ["light", "best", "strong"]
    assert len(ChatModels(catalog())) == 3
