"""The fields of OpenAI's package: each is taken, or is known to be refused."""

from typing import Any

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from chancellor.server.requests import ChatCompletionRequest, CompletionRequest
from tests.fakes import FakeEngine
from tests.serving import QUESTION

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "mul")]
NEUTRAL: dict[str, dict[str, tuple[Any, Any]]] = {
    CHAT: {
        "audio": (None, {"voice": "alloy", "format": "wav"}),
        "function_call": ("auto", {"name": "add"}),
        "functions": ([], [{"name": "add"}]),
        "modalities": (["text"], ["text", "audio"]),
        "moderation": (None, {"model": "omni"}),
        "reasoning_effort": ("medium", "low"),
        "verbosity": ("medium", "high"),
        "web_search_options": (None, {}),
    },
    RAW: {"suffix": ("", "end")},
}
"""What is taken only with a value that asks for nothing, and one that is refused."""


def asked(path: str, **fields: Any) -> dict[str, Any]:
    return {"model": "light", **({"messages": QUESTION} if path == CHAT else {"prompt": "hello"}), **fields}


@pytest.mark.parametrize(
    ("params", "taken"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatCompletionRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
    ],
    ids=["chat", "raw"],
)
def test_every_field_is_known(params: Any, taken: Any) -> None:
    assert {"model", "seed", "user"} <= set(params.__annotations__)
    assert set(params.__annotations__) <= set(taken.model_fields)


@pytest.mark.parametrize(
    ("path", "field", "neutral", "other"),
    [(path, field, *values) for path, fields in NEUTRAL.items() for field, values in fields.items()],
)
async def test_what_is_not_done(client: httpx.AsyncClient, path: str, field: str, neutral: Any, other: Any) -> None:
    for value in (neutral, None):
        assert (await client.post(path, json=asked(path, **{field: value}))).status_code == 200
    answer = await client.post(path, json=asked(path, **{field: other}))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: This is not done here: leave it out")


async def test_usage_in_each_chunk_is_not_done(client: httpx.AsyncClient) -> None:
    options: dict[str, Any] = {"include_usage": True, "continuous_usage_stats": False, "include_obfuscation": False}
    for path in (CHAT, RAW):
        answer = await client.post(path, json=asked(path, stream=True, stream_options=options))
        assert answer.status_code == 200
        body = asked(path, stream=True, stream_options={**options, "continuous_usage_stats": True})
        answer = await client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "stream_options.continuous_usage_stats"


async def test_hints_at_speed_and_price(client: httpx.AsyncClient) -> None:
    fields = {
        "prediction": {"type": "content", "content": "hello"},
        "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h",
    }
    answer = await client.post(CHAT, json=asked(CHAT, **fields))
    assert answer.json()["choices"][0]["message"]["content"] == "light says: hello there"


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools(client: httpx.AsyncClient, mode: str) -> None:
    answer = await client.post(CHAT, json=asked(CHAT, tools=TOOLS, tool_choice=allowed(mode, "mul")))
    assert answer.status_code == 200
    (request,) = FakeEngine.requests
    assert (request.tools, request.tool_choice) == ((TOOLS[1],), mode)


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (TOOLS, allowed("auto", "sub")),
        (TOOLS, allowed("auto")),
        (TOOLS, allowed("any", "add")),
        ([], allowed("auto", "add")),
    ],
)
async def test_allowed_tools_that_are_none(
    client: httpx.AsyncClient, tools: list[dict[str, Any]], choice: dict[str, Any]
) -> None:
    assert (await client.post(CHAT, json=asked(CHAT, tools=tools, tool_choice=choice))).status_code == 400
    assert FakeEngine.requests == []


async def test_what_vllms_benchmark_sends(client: httpx.AsyncClient) -> None:
    sent = {"repetition_penalty": 1.0, "max_tokens": 4, "logprobs": None, "temperature": 0.0, "ignore_eos": True}
    options = {"include_usage": True}
    answer = await client.post(RAW, json=asked(RAW, **sent, stream=True, stream_options=options))
    assert answer.status_code == 200, answer.text
