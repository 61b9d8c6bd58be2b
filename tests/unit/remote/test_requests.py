"""What is sent to a server."""

from typing import Any

import pytest

from chancellor.engines import Guide
from chancellor.engines.remote import RemoteEngine
from chancellor.engines.remote_requests import body_of
from chancellor.errors import EngineStartError
from tests.remote_server import Server
from tests.unit.remote.asking import TOOL, all_of, ask, far


def test_plain_body() -> None:
    path, body = body_of(ask(stream=False), far("http://127.0.0.1:9/v1"))
    assert path == "/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 512,
        "temperature": 0.7,
        "top_p": 1.0,
        "stream": False,
    }


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"max_tokens": 5, "temperature": 0.0, "top_p": 0.5}, {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5}),
        ({"seed": 0}, {"seed": 0}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": -1.0}, {"frequency_penalty": -1.0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"min_p": 0.25}, {"min_p": 0.25}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"logit_bias": ((5, -100.0), (6, 1.0))}, {"logit_bias": {"5": -100.0, "6": 1.0}}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"prompt": "x", "logprobs": 0}, {"prompt": "x", "logprobs": 0}),
        ({"prompt": (1, 2)}, {"prompt": [1, 2]}),
        ({"tools": (TOOL,)}, {"tools": [TOOL], "tool_choice": "auto"}),
        ({"tools": (TOOL,), "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "none"}),
        (
            {"tools": (TOOL,), "single_tool_call": True},
            {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"tool_choice": "none"}, {}),
        (
            {"tools": (TOOL,), "tool_choice": "required", "parallel_tool_calls": True},
            {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True},
        ),
        (
            {"tools": (TOOL,), "tool_choice": "add"},
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "add"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {"guide": Guide("json_schema", {"type": "object"})},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"guide": Guide("json_object")}, {"response_format": {"type": "json_object"}}),
        ({"guide": Guide("regex", "a+")}, {"structured_outputs": {"regex": "a+"}}),
        ({"guide": Guide("choice", ("a", "b"))}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"guide": Guide("grammar", "root ::= x")}, {"structured_outputs": {"grammar": "root ::= x"}}),
        ({"guide": Guide("structural_tag", "{}")}, {"structured_outputs": {"structural_tag": "{}"}}),
    ],
)
def test_body(options: dict[str, Any], sent: dict[str, Any]) -> None:
    spec = far("http://127.0.0.1:9/v1")
    path, body = body_of(ask(**options), spec)
    _, plain = body_of(ask(), spec)
    if "prompt" in options:
        assert path == "/completions"
        assert "messages" not in body
        del plain["messages"]
    assert body == {**plain, **sent}


def test_thoughts_of_earlier_turns_are_left_out() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text, "reasoning_content": "hm"}

    user = {"role": "user", "content": "a"}
    _, body = body_of(ask(messages=[user, thought("b"), user, thought("c")]), far("http://127.0.0.1:9/v1"))
    assert body["messages"] == [user, {"role": "assistant", "content": "b"}, user, thought("c")]


async def test_further_arguments_of_the_entry(server: Server) -> None:
    options = {
        "default_headers": {"x-team": "blue"},
        "default_query": {"version": "2"},
        "extra_body": {"top_k": 3, "temperature": 0.1},
        "max_retries": 9,  # which nothing takes
    }
    engine = RemoteEngine(far(server, vllm=options))
    await engine.start()
    await all_of(engine, ask())
    assert server.requests[-1][2]["x-team"] == "blue"
    assert (server.body["top_k"], server.body["temperature"]) == (3, 0.1)
    await engine.close()


async def test_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RemoteEngine(far(server, api_key_env="FAR_KEY"))
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(EngineStartError, match="export FAR_KEY"):
        await engine.start()
    monkeypatch.setenv("FAR_KEY", "secret")
    await engine.start()
    await all_of(engine, ask())
    assert server.requests[-1][2]["authorization"] == "Bearer secret"
    await engine.close()
