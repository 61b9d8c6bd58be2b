"""A second turn: the answer goes back as OpenAI's package gives it."""

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.engines.answers import plan_of
from tests.fakes import FakeEngine
from tests.serving import QUESTION, Scripted, Server, app_of, client_of

CHAT = "/v1/chat/completions"
AGAIN = {"role": "user", "content": "and then?"}


class Sum(BaseModel):
    """Two numbers."""

    a: int


TOOL = openai.pydantic_function_tool(Sum, name="add")
CALL: Any = {"role": "user", "content": 'call add {"a": 1}'}


class Thinking(Scripted):
    """Thinks before it says JSON."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        if request.messages[-1]["content"] != "think":
            async for delta in super().generate(request):
                yield delta
            return
        self.requests.append(request)
        yield Delta("", reasoning="Hm.")
        figures: dict[str, Any] = {"finish_reason": "stop", "input_tokens": 1, "output_tokens": 2, "engine": "fake"}
        yield Delta('{"a": 1}', **figures)


THINK: Any = {"role": "user", "content": "think"}


@pytest.fixture
def client_of_openai() -> Iterator[openai.OpenAI]:
    FakeEngine.reset()
    pool = EnginePool(Thinking)
    try:
        with Server(app_of(pool)) as server:
            yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    finally:
        pool.close()
        FakeEngine.reset()


def shown(client: openai.OpenAI, messages: list[Any], model: str = "light", **more: Any) -> list[dict[str, Any]]:
    """Send the conversation once more; return what the engine is shown."""
    client.chat.completions.create(model=model, messages=messages, **more)
    shown: list[dict[str, Any]] = FakeEngine.requests[-1].messages
    return shown


@pytest.mark.parametrize("model", ["light", "chancellor"])
def test_an_answer_with_thoughts(client_of_openai: openai.OpenAI, model: str) -> None:
    message = client_of_openai.chat.completions.create(model=model, messages=[THINK]).choices[0].message
    assert message.to_dict()["reasoning_content"] == "Hm."
    said = {"role": "assistant", "content": '{"a": 1}', "reasoning_content": "Hm."}
    for back in (message, message.model_dump(), message.to_dict()):
        assert shown(client_of_openai, [THINK, back, AGAIN], model) == [THINK, said, AGAIN]


def test_a_parsed_answer(client_of_openai: openai.OpenAI) -> None:
    asked: Any = {"model": "light", "messages": [THINK], "response_format": Sum}
    message = client_of_openai.chat.completions.parse(**asked).choices[0].message
    assert message.parsed == Sum(a=1)
    said = {"role": "assistant", "content": '{"a": 1}', "reasoning_content": "Hm."}
    assert shown(client_of_openai, [THINK, message, AGAIN]) == [THINK, said, AGAIN]
    with client_of_openai.chat.completions.stream(**asked) as stream:
        last = stream.get_final_completion().choices[0].message
    assert last.parsed == Sum(a=1)
    assert shown(client_of_openai, [THINK, last, AGAIN])[1]["content"] == '{"a": 1}'


@pytest.mark.parametrize("model", ["light", "chancellor"])
def test_a_tool_call_and_its_result(client_of_openai: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": [CALL], "tools": [TOOL]}
    parsed = client_of_openai.chat.completions.parse(**asked).choices[0].message
    with client_of_openai.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    for message in (parsed, streamed):
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.parsed_arguments == Sum(a=1)
        result = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "2"}
        said = {"role": "assistant", "content": message.content, "tool_calls": [call]}
        conversation = [CALL, message, result]
        assert shown(client_of_openai, conversation, model, tools=[TOOL]) == [CALL, said, result]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": "a", "annotations": None, "audio": None, "function_call": None, "tool_calls": None}, {}),
        ({"content": "a", "annotations": [], "id": "x", "provider_specific_fields": {"b": 1}}, {}),
        ({"content": "a", "reasoning": "Hm."}, {"reasoning_content": "Hm."}),
        ({"content": "a", "reasoning": "Hm.", "reasoning_content": None}, {"reasoning_content": "Hm."}),
        ({"content": [{"type": "text", "text": "a", "annotations": []}]}, {}),
        ({"content": None, "refusal": "a"}, {}),
    ],
)
async def test_what_other_clients_send_back(message: dict[str, Any], said: dict[str, Any]) -> None:
    FakeEngine.reset()
    pool = EnginePool(Scripted)
    messages = [*QUESTION, {"role": "assistant", **message}, AGAIN]
    try:
        async with client_of(app_of(pool)) as client:
            answer = await client.post(CHAT, json={"model": "light", "messages": messages})
            assert answer.status_code == 200, answer.text
            assert FakeEngine.requests[-1].messages[1] == {"role": "assistant", "content": "a", **said}
    finally:
        pool.close()


def test_templates_find_thoughts_under_both_of_their_names() -> None:
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "Hm."}]
    plan = plan_of(GenerationRequest(messages=messages), SimpleNamespace(chat_template="{{ tools }}"))
    assert plan.messages == [{**messages[0], "reasoning": "Hm."}]


async def test_a_request_is_still_read_strictly(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"model": "light", "messages": QUESTION, "max_token": 5})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_token"
