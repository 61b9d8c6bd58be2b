"""Answers on the wire, plain and streamed, held against OpenAI's types."""

from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from chancellor.engines import Delta, TokenLogprob
from chancellor.server.chat import ChatForm
from chancellor.server.requests import ChatCompletionRequest
from tests.fakes import FakeEngine
from tests.serving import QUESTION, events

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
}


async def plain(client: httpx.AsyncClient, path: str = CHAT, **fields: Any) -> Any:
    what: dict[str, Any] = {"messages": QUESTION} if path == CHAT else {"prompt": "hello there"}
    answer = await client.post(path, json={"model": "light", **what, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    (ChatCompletion if path == CHAT else Completion).model_validate_json(answer.content, strict=True)
    return answer.json()


async def streamed(client: httpx.AsyncClient, path: str = CHAT, **fields: Any) -> list[Any]:
    """Return the chunks, each of which is what it has to be; the last is the end."""
    what: dict[str, Any] = {"messages": QUESTION} if path == CHAT else {"prompt": "hello there"}
    answer = await client.post(path, json={"model": "light", "stream": True, **what, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = events(answer.text)
    assert found.pop() == "[DONE]"
    for chunk in found:
        if path == CHAT:
            ChatCompletionChunk.model_validate(chunk, strict=True)
        else:  # OpenAI's type knows no piece without a reason, and its servers send them
            ended = [{**one, "finish_reason": one["finish_reason"] or "stop"} for one in chunk["choices"]]
            Completion.model_validate({**chunk, "choices": ended}, strict=True)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in found}) == 1
    return found


def texts(chunks: list[Any]) -> dict[int, str]:
    made: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
        made[choice["index"]] = made.get(choice["index"], "") + piece
    return made


async def test_a_plain_answer(client: httpx.AsyncClient) -> None:
    answer = await plain(client)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "light"
    assert choice["message"] == {"role": "assistant", "content": "light says: hello there", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert answer["usage"] == USAGE
    assert "chancellor" not in answer


async def test_a_streamed_answer(client: httpx.AsyncClient) -> None:
    chunks = await streamed(client)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert texts(chunks) == {0: "light says: hello there"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_usage_in_a_stream(client: httpx.AsyncClient, path: str) -> None:
    *others, last = await streamed(client, path, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert [chunk["usage"] for chunk in others] == [None] * len(others)  # as OpenAI's servers say it
    assert "usage" not in (await streamed(client, path, stream_options={"include_usage": False}))[-1]


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_several_answers(client: httpx.AsyncClient, path: str) -> None:
    answer = await plain(client, path, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 12, 15)
    chunks = await streamed(client, path, n=3, stream_options={"include_usage": True})
    assert texts(chunks) == dict.fromkeys(range(3), "light says: hello there")
    assert chunks[-1]["usage"] == usage
    ends = [one["index"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"] == "stop"]
    assert sorted(ends) == [0, 1, 2]
    if path == CHAT:
        roles = [one["index"] for chunk in chunks for one in chunk["choices"] if one["delta"].get("role")]
        assert sorted(roles) == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_decision_in_the_body(client: httpx.AsyncClient, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "chancellor", "chancellor": {"decision": True}}
    if stream:
        *_, last = await streamed(client, **asked, stream_options={"include_usage": True})
        assert (last["choices"], last["usage"]) == ([], USAGE)
        without = (await streamed(client, **asked))[-1]
        assert "usage" not in without
        assert without["chancellor"]["decision"] is not None
    else:
        last = await plain(client, **asked)
    told = last["chancellor"]
    assert told["complexity"]["level"] == "low"
    assert told["decision"]["model"] == "light"
    assert {candidate["model"] for candidate in told["decision"]["candidates"]} == {"light", "best", "strong", "poor"}
    metrics = told["metrics"]
    assert (metrics["engine"], metrics["quantization"], metrics["fallbacks"]) == ("fake", "int8", [])
    assert (metrics["input_tokens"], metrics["output_tokens"], metrics["tokens_per_s"]) == (3, 4, 8.0)
    assert metrics["process_memory_mib"] > 10


async def test_a_named_model_has_no_decision(client: httpx.AsyncClient) -> None:
    told = (await plain(client, chancellor={"decision": True}))["chancellor"]
    assert (told["complexity"], told["decision"]) == (None, None)
    assert told["metrics"]["engine"] == "fake"


async def test_tool_calls(client: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": 'call add {"a": 1}'}], "tools": [TOOL]}
    (choice,) = (await plain(client, **asked))["choices"]
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    assert choice["finish_reason"] == "tool_calls"
    chunks = await streamed(client, **asked)
    pieces = [one for chunk in chunks for one in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert pieces[0] == {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": ""},
    }
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"a": 1}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_part_of_a_character_has_no_bytes_that_a_text_knows() -> None:
    asked = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    )
    token = TokenLogprob(1, "\ufffd", -1.0, {1: -1.0, 2: -2.0}, (("\ufffd", -1.0), ("é", -2.0)))
    form = ChatForm(asked)
    logprobs = form.whole([[Delta("é", (1,), (token,), finish_reason="stop")]]).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].bytes is None
    assert [one.bytes for one in logprobs.content[0].top_logprobs] == [None, list("é".encode())]


async def test_log_probabilities_of_a_chat(client: httpx.AsyncClient) -> None:
    (choice,) = (await plain(client, logprobs=True, top_logprobs=2))["choices"]
    first, second = choice["logprobs"]["content"]
    assert (first["token"], first["logprob"], bytes(first["bytes"]).decode()) == ("Hé", -0.5, "Hé")
    # What was not possible at all is OpenAI's lowest number, for JSON has no infinity.
    assert [(one["token"], one["logprob"]) for one in second["top_logprobs"]] == [(" you", -0.25), ("!", -9999.0)]
    chunks = await streamed(client, logprobs=True, top_logprobs=2)
    noted = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert noted == choice["logprobs"]["content"]
    assert texts(chunks) == {0: "Hé you"}
    assert [one["bytes"] for one in second["top_logprobs"]] == [list(b" you"), list(b"!")]
    for most in (None, 0, 1):  # engines add the token itself
        (choice,) = (await plain(client, logprobs=True, top_logprobs=most))["choices"]
        assert [len(one["top_logprobs"]) for one in choice["logprobs"]["content"]] == [most or 0] * 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_log_probabilities_of_a_completion_and_their_offsets(client: httpx.AsyncClient) -> None:
    whole = await plain(client, RAW, logprobs=2, n=2)
    expected = {
        "tokens": ["Hé", " you"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hé": -0.5}, {" you": -0.25, "!": -9999.0}],
        "text_offset": [0, 2],
    }
    assert [choice["logprobs"] for choice in whole["choices"]] == [expected, expected]
    chunks = await streamed(client, RAW, logprobs=2, n=2)
    for index in (0, 1):
        noted = [one["logprobs"] for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        assert [offset for one in noted for offset in one["text_offset"]] == [0, 2]
        assert [token for one in noted for token in one["tokens"]] == ["Hé", " you"]


async def test_completions_of_several_prompts_and_their_echo(client: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"prompt": ["one", "two"], "n": 2, "echo": True}
    expected = ["onelight says: one", "onelight says: one", "twolight says: two", "twolight says: two"]
    whole = await plain(client, RAW, **asked)
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["prompt_tokens"] == 6
    assert whole["usage"]["completion_tokens"] == 12
    chunks = await streamed(client, RAW, **asked, stream_options={"include_usage": True})
    assert texts(chunks) == dict(enumerate(expected))
    assert chunks[-1]["usage"] == whole["usage"]


async def test_completions_of_token_ids(client: httpx.AsyncClient) -> None:
    whole = await plain(client, RAW, prompt=[[1, 2], [3]])
    assert [choice["text"] for choice in whole["choices"]] == ["light says: (1, 2)", "light says: (3,)"]
    assert [request.messages for request in FakeEngine.requests] == [[], []]


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_texts_that_json_and_events_could_break_on(client: httpx.AsyncClient, path: str) -> None:
    nasty = 'a\r\n\r\ndata: [DONE]\n\n"\\ \x00\x1b\u2028\u2029 ü 漢 😀 </script>'
    fields: dict[str, Any] = {"prompt": nasty} if path == RAW else {"messages": [{"role": "user", "content": nasty}]}
    whole = (await plain(client, path, **fields))["choices"][0]
    assert (whole.get("text") or whole["message"]["content"]) == f"light says: {nasty}"
    assert texts(await streamed(client, path, **fields)) == {0: f"light says: {nasty}"}
