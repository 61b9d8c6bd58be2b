"""What a server answers, and what becomes of it."""

import re
from typing import Any

import pytest

from chancellor.engines import ToolCallPiece
from chancellor.engines.remote import RemoteEngine
from chancellor.engines.remote_requests import UNKNOWN_ID
from chancellor.errors import InvalidInputError
from tests.remote_server import Server, chunk, words
from tests.unit.remote.asking import TOOL, all_of, ask, text_of


@pytest.mark.parametrize("stream", [True, False])
async def test_answer(engine: RemoteEngine, server: Server, stream: bool) -> None:
    deltas = await all_of(engine, ask(stream=stream))
    assert text_of(deltas) == "one two three"
    assert len(deltas) == (4 if stream else 1)
    last = deltas[-1]
    assert (last.finish_reason, last.input_tokens, last.output_tokens, last.cached_tokens) == ("stop", 7, 3, 4)
    assert (last.model, last.engine, last.quantization, last.queue_time_s) == ("far", "openai", None, None)
    assert last.inference_time_s is not None
    assert last.inference_time_s > 0
    assert (last.time_to_first_token_s is not None) == stream
    assert server.requests[-1][0] == "/v1/chat/completions"
    assert server.requests[-1][2]["authorization"] == "Bearer none"
    assert server.body.get("stream_options") == ({"include_usage": True} if stream else None)
    assert all(delta.finish_reason is None and delta.model is None for delta in deltas[:-1])


@pytest.mark.parametrize("stream", [True, False])
async def test_raw_prompt(engine: RemoteEngine, server: Server, stream: bool) -> None:
    logprobs = {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"y": -0.1, "x": -0.5}], "text_offset": [0]}
    pieces = [{"index": 0, "text": "x", "finish_reason": None, "logprobs": logprobs}]
    pieces.append({"index": 0, "text": "z", "finish_reason": "length", "logprobs": None})
    server.streams["Once"] = [*({"choices": [piece]} for piece in pieces), "[DONE]"]
    server.wholes["Once"] = {"text": "xz", "finish_reason": "length", "logprobs": logprobs}
    deltas = await all_of(engine, ask(messages=[], prompt="Once", stream=stream, logprobs=1))
    assert server.requests[-1][0] == "/v1/completions"
    assert text_of(deltas) == "xz"
    assert deltas[-1].finish_reason == "length"
    [one] = [one for delta in deltas for one in delta.logprobs]
    assert (one.token_id, one.token, one.logprob, one.top) == (UNKNOWN_ID, "x", -0.5, {})
    assert one.top_tokens == (("y", -0.1), ("x", -0.5))


@pytest.mark.parametrize("prompt", ["", ()])
async def test_empty_prompt(engine: RemoteEngine, prompt: Any) -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        await all_of(engine, ask(prompt=prompt))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning(engine: RemoteEngine, server: Server, field: str) -> None:
    server.streams["why"] = [chunk({field: "Hm. "}), chunk({field: "Well."}), *words("So.")]
    server.wholes["why"] = {"content": "So.", field: "Hm. Well."}
    for stream in (True, False):
        deltas = await all_of(engine, ask("why", stream=stream))
        assert "".join(delta.reasoning for delta in deltas) == "Hm. Well."
        assert text_of(deltas) == "So."


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls(engine: RemoteEngine, server: Server, stream: bool) -> None:
    def call(index: int, number: str | None, name: str | None, arguments: str) -> dict[str, Any]:
        return {"index": index, "id": number, "type": "function", "function": {"name": name, "arguments": arguments}}

    server.streams["add"] = [
        chunk({"tool_calls": [call(0, "call_a", "add", "")]}),
        chunk({"tool_calls": [call(0, "call_a", "add", '{"a":')]}),  # some repeat the name
        chunk({"tool_calls": [call(0, None, None, "1}")]}),
        chunk({"tool_calls": [call(1, None, "add", "{}")]}),
        chunk({}, "stop"),  # as vLLM does where the tool was named
        "[DONE]",
    ]
    plain = [call(0, "call_a", "add", '{"a":1}'), call(1, None, "add", "{}")]
    for one in plain:
        del one["index"]
    server.wholes["add"] = {"content": None, "tool_calls": plain}
    deltas = await all_of(engine, ask("add", stream=stream, tools=(TOOL,), tool_choice="required"))
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    first = [piece for piece in pieces if piece.index == 0]
    assert first[0].id == "call_a"
    assert [piece.name for piece in first] == (["add", None, None] if stream else ["add"])
    assert "".join(piece.arguments for piece in first) == '{"a":1}'
    [second] = [piece for piece in pieces if piece.index == 1]
    assert second == ToolCallPiece(1, second.id, "add", "{}")
    assert second.id is not None
    assert re.match(r"call_\w", second.id)  # whoever answers a call has to name it
    assert deltas[-1].finish_reason == "tool_calls"


async def test_logprobs(engine: RemoteEngine, server: Server) -> None:
    def step(token: str, value: float, *top: tuple[str, float]) -> dict[str, Any]:
        likeliest = [{"token": text, "logprob": one, "bytes": None} for text, one in top]
        return {"content": [{"token": token, "logprob": value, "bytes": None, "top_logprobs": likeliest}]}

    server.streams["how sure"] = [
        chunk({"content": ""}, logprobs=step("\u2581", -2.0)),  # whose text comes with the next
        chunk({"content": "yes"}, logprobs=step("yes", -0.5, ("no", -0.1), ("maybe", -0.9))),
        chunk({"content": ""}, "stop", logprobs=step("</s>", -0.2)),
        "[DONE]",
    ]
    deltas = await all_of(engine, ask("how sure", logprobs=2))
    assert [len(delta.logprobs) for delta in deltas] == [2, 1, 0]
    space, yes, end = (one for delta in deltas for one in delta.logprobs)
    assert (space.token, space.logprob, space.top_tokens) == ("\u2581", -2.0, (("\u2581", -2.0),))
    assert yes.top_tokens == (("no", -0.1), ("yes", -0.5), ("maybe", -0.9))
    assert end.token == "</s>"
    assert {one.token_id for one in (space, yes, end)} == {UNKNOWN_ID}


async def test_refusal_is_the_answer(engine: RemoteEngine, server: Server) -> None:
    server.wholes["how"] = {"content": None, "refusal": "I won't."}
    assert text_of(await all_of(engine, ask("how", stream=False))) == "I won't."


async def test_server_without_usage(engine: RemoteEngine, server: Server) -> None:
    server.streams["short"] = [chunk({"content": "x"}), chunk({}, "content_filter"), "[DONE]"]
    last = (await all_of(engine, ask("short")))[-1]
    assert (last.finish_reason, last.input_tokens, last.output_tokens) == ("content_filter", None, None)


async def test_server_that_wants_the_other_limit(engine: RemoteEngine, server: Server) -> None:
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.statuses["new"] = (400, {"error": {"message": message, "param": "max_tokens", "code": "unsupported"}}, {})
    with pytest.raises(InvalidInputError, match="max_completion_tokens"):
        await all_of(engine, ask("new", max_tokens=9))
    assert [body.get("max_tokens") for _, body, _ in server.requests] == [9, None]
    assert server.body["max_completion_tokens"] == 9
    await all_of(engine, ask(max_tokens=8))  # once known, it is asked so at once
    assert (server.body["max_completion_tokens"], "max_tokens" in server.body) == (8, False)
