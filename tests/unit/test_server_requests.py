"""Every field of a request: what becomes of it in the engine, and what is refused."""

from typing import Any

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.serving import QUESTION

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"anyOf": [SCHEMA, {"type": "null"}]},
    {"enum": ["a", "b"]},
    {"type": ["string", "null"]},
    {"title": "Point", "properties": {"x": {"type": "integer"}}},
]


async def asked(client: httpx.AsyncClient, path: str = CHAT, **fields: Any) -> list[Any]:
    """Ask, and return what the engine was asked."""
    what: dict[str, Any] = {"messages": QUESTION} if path == CHAT else {}
    answer = await client.post(path, json={"model": "light", **what, **fields})
    assert answer.status_code == 200, answer.text
    return list(FakeEngine.requests)


async def refused(client: httpx.AsyncClient, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """Ask, and return the error of the refusal, which no engine has heard of."""
    what: dict[str, Any] = {"messages": QUESTION} if path == CHAT else {"prompt": "hello"}
    answer = await client.post(path, json={"model": "light", **what, **fields})
    assert answer.status_code == 400, answer.text
    assert FakeEngine.requests == []
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({}, "max_tokens", 512),
        ({}, "temperature", 0.7),
        ({}, "stream", False),
        ({}, "retries", 1),
        ({}, "timeout_s", 600.0),
        ({"max_tokens": 3}, "max_tokens", 3),
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"seed": 7}, "seed", 7),
        ({"seed": -1}, "seed", -1),
        ({"stop": "end"}, "stop", ("end",)),
        ({"stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": None}, "stop", ()),
        ({"presence_penalty": -2}, "presence_penalty", -2.0),
        ({"frequency_penalty": 2}, "frequency_penalty", 2.0),
        ({}, "top_k", 0),
        ({"top_k": 5}, "top_k", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"min_p": 0.25}, "min_p", 0.25),
        ({}, "repetition_penalty", 1.0),
        ({"repetition_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"logit_bias": {"12": -100, "7": 1.5}}, "logit_bias", ((12, -100.0), (7, 1.5))),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"stream": True}, "stream", True),
        ({"user": "me", "n": 1, "temperature": None, "max_tokens": None}, "temperature", 0.7),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_what_both_routes_take(
    client: httpx.AsyncClient, path: str, given: dict[str, Any], field: str, expected: Any
) -> None:
    more = {} if path == CHAT else {"prompt": "hello"}
    (request,) = await asked(client, path, **more, **given)
    assert getattr(request, field) == expected


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"max_completion_tokens": 4}, "max_tokens", 4),
        ({"max_completion_tokens": 4, "max_tokens": 9}, "max_tokens", 4),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
        ({"logprobs": False}, "logprobs", None),
        ({"tools": [TOOL]}, "tools", (TOOL,)),
        ({"tools": []}, "tools", ()),
        ({"tools": [TOOL]}, "tool_choice", "auto"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice", "add"),
        ({"tools": [TOOL], "parallel_tool_calls": True}, "parallel_tool_calls", True),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "single_tool_call", True),
        ({"tools": [TOOL]}, "single_tool_call", False),
        ({"response_format": {"type": "text"}}, "guide", None),
        ({"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k"}, "guide", None),
    ],
)
async def test_what_a_chat_takes(client: httpx.AsyncClient, given: dict[str, Any], field: str, expected: Any) -> None:
    (request,) = await asked(client, **given)
    assert getattr(request, field) == expected


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            SCHEMA,
        ),
        *(
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                "json_schema",
                schema,
            )
            for schema in SCHEMAS
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json_object", None),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        *(({"structured_outputs": {"json": schema}}, "json_schema", schema) for schema in SCHEMAS),
        ({"structured_outputs": {"json": '{"enum": ["a"]}'}}, "json_schema", {"enum": ["a"]}),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "choice", ["yes", "no"]),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
    ],
)
async def test_guides(client: httpx.AsyncClient, given: dict[str, Any], kind: str, value: Any) -> None:
    (request,) = await asked(client, **given)
    assert (request.guide.kind, request.guide.value) == (kind, value)


async def test_a_whole_conversation(client: httpx.AsyncClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Add 1."}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Go on."},
    ]
    for model in ("light", "chancellor"):  # to be routed, a conversation is read once more
        FakeEngine.requests.clear()
        (request,) = await asked(client, model=model, messages=messages)
        assert request.messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be\nkind."},
            {"role": "user", "name": "ann", "content": "Add 1."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Go on."},
        ]


async def test_a_question_in_parts_is_routed_by_its_text(client: httpx.AsyncClient) -> None:
    text = "Compare a cache with a database, and explain in detail which one of them is better for a shop and why"
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    answer = await client.post(CHAT, json={"model": "chancellor", "messages": parts})
    assert answer.headers["x-chancellor-complexity"] == "high"
    assert answer.json()["choices"][0]["message"]["content"] == f"strong says: {text}"


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a", "b"]}, ["a", "b"]),
        ({"prompt": [1, 2]}, [(1, 2)]),
        ({"prompt": [[1, 2], [3]]}, [(1, 2), (3,)]),
        ({"prompt": ["a", "b"], "n": 2, "best_of": 2}, ["a", "a", "b", "b"]),
    ],
)
async def test_prompts(client: httpx.AsyncClient, given: dict[str, Any], prompts: list[Any]) -> None:
    requests = await asked(client, RAW, **given)
    assert sorted(str(request.prompt) for request in requests) == sorted(map(str, prompts))
    assert all(request.messages == [] for request in requests)


async def test_seeds_count_up_and_stay_numbers_of_64_bits(client: httpx.AsyncClient) -> None:
    requests = await asked(client, seed=2**63 - 1, n=3)
    assert sorted(request.seed for request in requests) == [-(2**63), 1 - 2**63, 2**63 - 1]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"length_penalty": 1}, "length_penalty"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"chancellor": {"decision": True, "more": 1}}, "chancellor.more"),
        ({"chancellor": {"policy": 5}}, "chancellor.policy"),
        ({"n": 129}, None),
        ({"max_tokens": 16_385}, None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_what_both_routes_refuse(
    client: httpx.AsyncClient, path: str, given: dict[str, Any], param: str | None
) -> None:
    error = await refused(client, path, **given)
    assert error["param"] == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "clown", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "bogus", "text": "x"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]}, None),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": []}]}, None),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": [{"id": 1}]}]}, "messages.1.tool_calls.0.id"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id"),
        ({"top_logprobs": 2}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "add"}}]}, None),
        ({"tool_choice": "required"}, None),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "mul"}}}, None),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"regex": "a", "json": SCHEMA}}, None),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"poem": "a"}}, "structured_outputs.poem"),
        ({"structured_outputs": {"json": "{"}}, None),
        ({"structured_outputs": {"json": 5}}, None),
    ],
)
async def test_what_a_chat_refuses(client: httpx.AsyncClient, given: dict[str, Any], param: str | None) -> None:
    assert (await refused(client, **given))["param"] == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"best_of": 3}, None),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True}, None),
        ({"prompt": [1, 2], "echo": True}, None),
        ({"model": "chancellor", "prompt": [1, 2]}, None),
        ({"model": "chancellor", "prompt": "  "}, None),
        ({"prompt": ["a"] * 129}, None),
    ],
)
async def test_what_a_completion_refuses(client: httpx.AsyncClient, given: dict[str, Any], param: str | None) -> None:
    assert (await refused(client, RAW, **given))["param"] == param
