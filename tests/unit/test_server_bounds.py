"""Bodies that are small enough to be taken in, and hold more than anybody means: how much is said of what is wrong.

pydantic's time and memory go with the errors that it collects, so that they are counted here, and no seconds.
"""

import gc
import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from chancellor.server.bounds import MOST_BIASES, MOST_CHOICES, MOST_MESSAGES, MOST_PROMPTS, MOST_TOOLS
from chancellor.server.requests import ChatCompletionRequest, CompletionRequest
from tests.fakes import FakeEngine
from tests.serving import QUESTION

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
SIZE = 4 * 2**20 - 1024
FEW = 16
"""Errors: one for each type that the first wrong value might have."""
ITEMS: dict[str, tuple[str, str, str]] = {  # the route, what goes around the items, and one of them
    "prompt: fractions": (RAW, '"prompt": [%s]', "1.5"),
    "prompt: objects": (RAW, '"prompt": [%s]', "{}"),
    "prompt: empty lists": (RAW, '"prompt": [%s]', "[]"),
    "prompt: wrong lists": (RAW, '"prompt": [%s]', '["a"]'),
    "prompt: texts": (RAW, '"prompt": [%s]', '"a"'),
    "prompt: token ids": (RAW, '"prompt": [%s]', "[1]"),
    "stop": (CHAT, '"stop": [%s]', "1"),
    "stop: texts": (CHAT, '"stop": [%s]', '"a"'),
    "tools": (CHAT, '"tools": [%s]', "{}"),
    "tools: good ones": (CHAT, '"tools": [%s]', '{"type": "function", "function": {"name": "a"}}'),
    "allowed tools": (
        CHAT,
        '"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [%s]}}',
        "{}",
    ),
    "messages": (CHAT, '"messages": [%s]', "{}"),
    "messages: good ones": (CHAT, '"messages": [%s]', '{"role": "user", "content": "a"}'),
    "parts": (CHAT, '"messages": [{"role": "user", "content": [%s]}]', "{}"),
    "parts: good ones": (CHAT, '"messages": [{"role": "user", "content": [%s]}]', '{"type": "text", "text": "a"}'),
    "calls": (CHAT, '"messages": [{"role": "assistant", "content": "", "tool_calls": [%s]}]', "{}"),
    "choice": (CHAT, '"structured_outputs": {"choice": [%s]}', "1"),
    "logit_bias": (CHAT, '"logit_bias": {%s}', '"k#": 1'),
    "logit_bias: good ones": (CHAT, '"logit_bias": {%s}', '"#": 1'),
    "metadata": (CHAT, '"metadata": {%s}', '"k#": 1'),
    "fields": (CHAT, "%s", '"k#": 1'),
    "fields of a tool": (CHAT, '"tools": [{"type": "function", "function": {%s}}]', '"k#": 1'),
    "fields of a format": (
        CHAT,
        '"response_format": {"type": "json_schema", "json_schema": {%s}}',
        '"k#": 1',
    ),
    "fields of ours": (CHAT, '"chancellor": {%s}', '"k#": 1'),
}


def body(name: str, size: int) -> tuple[str, bytes]:
    """Return a route, and a body of about that many bytes for it."""
    path, around, item = ITEMS[name]
    count = size // (len(item.replace("#", "1000000")) + 1)
    items = ",".join(item.replace("#", str(10**6 + number)) for number in range(count))
    more = "" if '"messages"' in around or path == RAW else f'"messages": {json.dumps(QUESTION)}, '
    return path, f'{{"model": "light", {more}{around % items}}}'.encode()


@pytest.mark.parametrize("name", ITEMS)
async def test_however_much_is_wrong_little_is_said_of_it(client: httpx.AsyncClient, name: str) -> None:
    path, content = body(name, SIZE)
    answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 200
    assert FakeEngine.requests == []
    with pytest.raises(ValidationError) as caught:
        (CompletionRequest if path == RAW else ChatCompletionRequest).model_validate(json.loads(content))
    assert caught.value.error_count() <= FEW


TOOL = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}
WIDE = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(500)}}


@pytest.mark.parametrize(
    ("path", "field", "most"),
    [
        (CHAT, lambda count: {"messages": QUESTION * count}, MOST_MESSAGES),
        (CHAT, lambda count: {"messages": [{"role": "user", "content": parts(count)}]}, MOST_MESSAGES),
        (CHAT, lambda count: {"messages": QUESTION, "tools": [TOOL] * count}, MOST_TOOLS),
        (
            CHAT,
            lambda count: {"messages": QUESTION, "structured_outputs": {"choice": list(map(str, range(count)))}},
            MOST_CHOICES,
        ),
        (RAW, lambda count: {"prompt": "a", "logit_bias": {str(one): 1 for one in range(count)}}, MOST_BIASES),
    ],
)
async def test_how_much_there_may_be(client: httpx.AsyncClient, path: str, field: Any, most: int) -> None:
    assert (await client.post(path, json={"model": "light", **field(most)})).status_code == 200
    assert (await client.post(path, json={"model": "light", **field(most + 1)})).status_code == 400


def parts(count: int) -> list[dict[str, str]]:
    return [{"type": "text", "text": "a"}] * count


def test_how_many_prompts_there_may_be() -> None:
    for one in ("a", [1]):
        assert len(CompletionRequest.model_validate({"model": "m", "prompt": [one] * MOST_PROMPTS}).prompts()) == 4096
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"model": "m", "prompt": [one] * (MOST_PROMPTS + 1)})


async def test_a_prompt_is_as_many_tokens_as_a_model_takes(client: httpx.AsyncClient) -> None:
    answer = await client.post(RAW, json={"model": "light", "prompt": [1] * 200_000})
    assert answer.status_code == 200
    assert len(FakeEngine.requests[-1].prompt or ()) == 200_000


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": WIDE}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WIDE}}},
        {"structured_outputs": {"json": WIDE}},
    ],
)
async def test_schemas_are_as_wide_as_they_like(client: httpx.AsyncClient, given: dict[str, Any]) -> None:
    answer = await client.post(CHAT, json={"model": "light", "messages": QUESTION, **given})
    assert answer.status_code == 200, answer.text


async def test_a_body_is_read_without_rounds_of_the_garbage_collector(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million small lists set off so many that they took ten times as long as all else."""
    collecting, real = [], json.loads

    def loads(*given: Any, **more: Any) -> Any:
        collecting.append(gc.isenabled())
        return real(*given, **more)

    monkeypatch.setattr("json.loads", loads)
    for content, status in ((b'{"model": "light", "prompt": "a"}', 200), (b'{"model": ', 400)):
        collecting.clear()
        answer = await client.post(RAW, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert collecting[0] is False
        assert gc.isenabled()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": True}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"n": "1"}, "n"),
        ({"seed": False}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"logit_bias": {"1": True}}, "logit_bias.1"),
        ({"logit_bias": {"1": "1"}}, "logit_bias.1"),
        ({"logit_bias": {"2": 1, "x": 1}}, "logit_bias.x"),
        ({"ignore_eos": "true"}, "ignore_eos"),
        ({"chancellor": {"decision": 1}}, "chancellor.decision"),
    ],
)
async def test_a_value_of_another_type_is_not_made_one(client: httpx.AsyncClient, given: Any, param: str) -> None:
    answer = await client.post(RAW, json={"model": "light", "prompt": "a", **given})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_json_has_one_type_of_numbers(client: httpx.AsyncClient) -> None:
    given = {"max_tokens": 5.0, "temperature": 1, "logit_bias": {"7": 1}, "seed": 3.0}
    answer = await client.post(RAW, json={"model": "light", "prompt": "a", **given})
    assert answer.status_code == 200, answer.text
    (request,) = FakeEngine.requests
    assert (request.max_tokens, request.temperature, request.logit_bias, request.seed) == (5, 1.0, ((7, 1.0),), 3)
    assert type(request.max_tokens) is type(request.seed) is int


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_what_is_asked_for_too_often_takes_no_memory(client: httpx.AsyncClient, path: str) -> None:
    asked = {"model": "light", "messages": QUESTION} if path == CHAT else {"model": "light", "prompt": "a"}
    refused = await client.post(path, json={**asked, "n": 10**15})
    assert refused.status_code == 400
    assert "are the most" in refused.json()["error"]["message"]
