import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from email.utils import formatdate
from time import time
from typing import Any

import pytest

from chancellor import Catalog, FallbackOptions, ModelSpec
from chancellor.catalog import EngineOptions
from chancellor.chat.substitutes import substitutes
from chancellor.engines import Delta, Engine, EnginePool, GenerationRequest, Guide, ToolCallPiece, remote, remote_server
from chancellor.engines.ladder import Ladder, label
from chancellor.engines.remote import RemoteEngine
from chancellor.engines.remote_requests import UNKNOWN_ID, body_of
from chancellor.errors import (
    ChancellorError,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    GenerationError,
    GenerationTimeoutError,
    InvalidInputError,
    MissingDependencyError,
    PromptTooLongError,
)
from chancellor.settings import settings
from tests.fakes import FakeEngine
from tests.remote_server import Server, chunk, running, words

HERE = ModelSpec(name="here", source="fake/here", trinity=96, parameters=1_000)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and do not wait long: what is tested is the order of things."""
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(remote_server, "_LOOK_S", 1.0)
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.5)


def far(server: Server | str, name: str = "far", **options: Any) -> ModelSpec:
    url = server if isinstance(server, str) else server.url
    return ModelSpec(name=name, source="m", trinity=97, engine=EngineOptions(kind="openai", base_url=url, **options))


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(far(server))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> Iterator[EnginePool]:
    def made(spec: ModelSpec) -> Engine:
        return RemoteEngine(spec) if spec.engine.kind == "openai" else FakeEngine(spec)

    pool = EnginePool(made)
    yield pool
    pool.close()


def ask(question: str = "hi", **options: Any) -> GenerationRequest:
    return GenerationRequest(**{"messages": [{"role": "user", "content": question}], "stream": True, **options})


async def all_of(engine: RemoteEngine, request: GenerationRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of another thread, mostly
            await asyncio.sleep(0.01)


# Answers


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
        ({"logit_bias": ((5, -100.0), (6, 1.0))}, {"logit_bias": {"5": -100.0, "6": 1.0}}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"prompt": "x", "logprobs": 0}, {"prompt": "x", "logprobs": 0}),
        ({"prompt": (1, 2)}, {"prompt": [1, 2]}),
        ({"tools": (TOOL,)}, {"tools": [TOOL], "tool_choice": "auto"}),
        ({"tools": (TOOL,), "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "none"}),
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


async def test_further_arguments_of_the_entry(server: Server) -> None:
    options = {
        "default_headers": {"x-team": "blue"},
        "default_query": {"version": "2"},
        "extra_body": {"top_k": 3, "temperature": 0.1},
        "max_retries": 9,  # langchain-openai's
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


# Errors


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "message", "kind", "pattern"),
    [
        (400, "temperature must be positive", InvalidInputError, "temperature must be positive"),
        (422, "no field x", InvalidInputError, "no field x"),
        (413, "too many bytes", InvalidInputError, "too many bytes"),
        (400, "This model's maximum context length is 512 tokens.", PromptTooLongError, "512 tokens"),
        (400, "The decoder prompt (length 9) is longer than the maximum model length of 5", PromptTooLongError, "9"),
        (401, "bad key", GenerationError, "does not take the key"),
        (403, "bad key", GenerationError, "does not take the key"),
        (404, "no such model", GenerationError, "has no model 'm'"),
        (408, "slow", GenerationTimeoutError, "gave up"),
        (504, "slow", GenerationTimeoutError, "gave up"),
        (429, "full", EngineBusyError, "no more requests"),
        (503, "full", EngineBusyError, "no more requests"),
        (500, "oops", GenerationError, "oops"),
        (502, "no upstream", EngineDiedError, "no upstream"),
        (409, "conflict", GenerationError, "conflict"),
    ],
)
async def test_statuses(
    engine: RemoteEngine, server: Server, stream: bool, status: int, message: str, kind: type, pattern: str
) -> None:
    server.statuses["x"] = (status, {"error": {"message": message, "type": "t", "code": status}}, {})
    with pytest.raises(ChancellorError, match=pattern) as raised:
        await all_of(engine, ask("x", stream=stream))
    assert type(raised.value) is kind
    assert len(raised.value.hint) > 10
    assert len(server.requests) == 1  # nothing is asked twice behind the pool's back
    assert text_of(await all_of(engine, ask())) == "one two three"  # and it goes on


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": formatdate(time() + 86_400, usegmt=True)}, 86_400.0),
        ({"retry-after": formatdate(time() - 1000, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, 1.0),
        ({"retry-after": "nan"}, 1.0),
        ({}, 1.0),
    ],
)
async def test_retry_after(engine: RemoteEngine, server: Server, headers: dict[str, str], seconds: float) -> None:
    server.statuses["x"] = (429, {"error": {"message": "full"}}, headers)
    with pytest.raises(EngineBusyError) as raised:
        await all_of(engine, ask("x"))
    # pytest made the date when it began.
    assert raised.value.retry_after_s == pytest.approx(seconds, abs=10_000 if seconds > 7 else 0)


@pytest.mark.parametrize("body", [{"detail": "what a shape"}, {"message": "what a shape"}, "what a shape"])
async def test_other_shapes_of_errors(engine: RemoteEngine, server: Server, body: Any) -> None:
    server.statuses["x"] = (400, body, {})
    with pytest.raises(InvalidInputError, match="what a shape"):
        await all_of(engine, ask("x"))


async def test_error_in_the_stream(engine: RemoteEngine, server: Server) -> None:
    def broken(code: object) -> dict[str, Any]:
        return {"error": {"message": "it broke", "type": "t", "code": code}}

    server.streams |= {"at once": [broken(400)], "later": [chunk({"content": "x"}), broken(400)]}
    server.streams["nameless"] = [broken(None)]
    with pytest.raises(InvalidInputError, match="it broke"):
        await all_of(engine, ask("at once"))
    with pytest.raises(GenerationError, match=r"(?s)in the middle.*it broke"):
        await all_of(engine, ask("later"))
    with pytest.raises(GenerationError, match="it broke"):
        await all_of(engine, ask("nameless"))


@pytest.mark.parametrize(
    "garbage",
    [
        ["{no json"],
        [[1, 2]],
        [{"choices": 5}],
        [{"hello": "there"}],
        [{"choices": [{"delta": {"content": {"a": 1}}}]}],
        [{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {}}]}}]}],
    ],
)
async def test_garbage_in_a_stream(engine: RemoteEngine, server: Server, garbage: list[Any]) -> None:
    server.streams["x"] = [*garbage, "[DONE]"]
    with pytest.raises(GenerationError, match="not of OpenAI's form") as raised:
        await all_of(engine, ask("x"))
    assert "base_url" in raised.value.hint


async def test_page_in_place_of_an_answer(engine: RemoteEngine, server: Server) -> None:
    server.wholes["x"] = "<html>Welcome</html>"
    with pytest.raises(GenerationError, match="not of OpenAI's form"):
        await all_of(engine, ask("x", stream=False))
    server.statuses["y"] = (200, {"choices": []}, {})  # JSON where a stream was asked for
    with pytest.raises(GenerationError, match="not of OpenAI's form"):
        await all_of(engine, ask("y"))


# Connections


@pytest.mark.parametrize(
    "pieces",
    [
        ["cut"],
        [chunk({"role": "assistant", "content": ""}), "cut"],
        [chunk({"content": ""}, logprobs={"content": [{"token": "x", "logprob": -1.0}]}), "cut"],
        [chunk({"role": "assistant", "content": ""})],  # an end without a reason
        [chunk({}, "abort"), "[DONE]"],  # of a server that shuts down
    ],
)
async def test_lost_before_the_first_text(engine: RemoteEngine, server: Server, pieces: list[Any]) -> None:
    server.streams["x"] = pieces
    deltas = engine.generate(ask("x"))
    with pytest.raises(EngineDiedError, match="lost before 'far' answered"):
        await anext(deltas)
    assert engine.healthy()  # it was one connection, and the server answers


async def test_whole_answer_lost(engine: RemoteEngine, server: Server) -> None:
    server.wholes["x"] = "cut"
    with pytest.raises(EngineDiedError, match="lost before"):
        await all_of(engine, ask("x", stream=False))


@pytest.mark.parametrize(
    "delta", [{"content": "one "}, {"reasoning": "hm"}, {"tool_calls": [{"function": {"name": "add"}}]}]
)
async def test_lost_after_the_first_piece(engine: RemoteEngine, server: Server, delta: dict[str, Any]) -> None:
    server.streams["x"] = [chunk(delta), "cut"]
    with pytest.raises(GenerationError, match="lost in the middle") as raised:
        await all_of(engine, ask("x"))
    assert type(raised.value) is GenerationError  # no engine can go on with it
    assert "Ask again" in raised.value.hint


async def test_lost_after_the_last_piece(engine: RemoteEngine, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "all"}), chunk({}, "length"), "cut"]
    deltas = await all_of(engine, ask("x"))
    assert text_of(deltas) == "all"
    assert (deltas[-1].finish_reason, deltas[-1].output_tokens) == ("length", None)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_ends_the_request_on_the_server(engine: RemoteEngine, server: Server, stream: bool) -> None:
    server.streams["x"] = [chunk({"content": "one "}), "hang"]
    server.wholes["x"] = "hang"
    task = asyncio.create_task(all_of(engine, ask("x", stream=stream)))
    await until(lambda: server.requests)
    assert engine.stats().running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.left == ["x"])
    assert engine.stats().running == 0
    if stream:
        async with aclosing(engine.generate(ask("x"))) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                assert delta.text == "one "
                break
        await until(lambda: server.left == ["x", "x"])


async def test_stats_and_peaks(engine: RemoteEngine, server: Server) -> None:
    server.streams["x"] = ["hang"]
    tasks = [asyncio.create_task(all_of(engine, ask("x"))) for _ in range(3)]
    await until(lambda: len(server.requests) == 3)
    stats = engine.stats()
    assert (stats.running, stats.peak_running) == (3, 3)
    assert (stats.waiting, stats.kv_cache_usage, stats.output_tokens) == (None, None, None)
    assert engine.peaks() == (3, None)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert engine.peaks() == (3, None)
    assert engine.peaks() == (0, None)
    assert engine.process_ids() == []
    assert engine.tokenizer() is None


@pytest.mark.parametrize("pieces", [["hang"], [chunk({"content": "one "}), "hang"]])
async def test_close_ends_what_runs(engine: RemoteEngine, server: Server, pieces: list[Any]) -> None:
    server.streams["x"] = pieces
    task = asyncio.create_task(all_of(engine, ask("x")))
    await until(lambda: server.requests)
    await engine.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await task
    await until(lambda: server.left)
    assert not engine.healthy()
    await engine.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await all_of(engine, ask())


async def test_what_others_have_begun_is_refused(engine: RemoteEngine) -> None:
    with pytest.raises(GenerationError, match="cannot go on"):
        await all_of(engine, ask(answered=(1, 2)))


# Starts


async def refused(spec: ModelSpec) -> EngineStartError:
    engine = RemoteEngine(spec)
    with pytest.raises(EngineStartError) as raised:
        await engine.start()
    assert not engine.healthy()
    return raised.value


async def test_start_without_a_server(server: Server) -> None:
    server.stop()
    error = await refused(far(server.url.replace("//", "//user:password@")))
    assert f"127.0.0.1:{server.port}/v1 cannot be reached" in error.message
    assert f"curl {server.url}/models" in error.hint
    assert "password" not in str(error)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/v1", "http://127.0.0.1:x/v1"])
async def test_start_with_a_wrong_url(url: str) -> None:
    assert "base_url" in (await refused(far(url))).hint


@pytest.mark.parametrize("status", [401, 403])
async def test_start_with_a_wrong_key(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    server.models_statuses = [status]
    assert f"does not take the key ({status})" in (await refused(far(server))).message
    monkeypatch.setenv("FAR_KEY", "wrong")
    assert "FAR_KEY" in (await refused(far(server, api_key_env="FAR_KEY"))).hint


async def test_start_without_the_model(server: Server) -> None:
    server.models = {"data": [{"id": "other"}, {"id": "another"}]}
    error = await refused(far(server))
    assert "has no model 'm'" in error.message
    assert "other, another" in error.hint
    server.models = {"data": [{"id": f"m{number}"} for number in range(20)]}
    assert "m7 and 12 more" in (await refused(far(server))).hint
    server.models = {"data": []}
    assert "It has: none" in (await refused(far(server))).hint


async def test_start_of_a_server_that_is_not_ready(server: Server) -> None:
    server.models_statuses = [503]
    assert "not ready (503): no list" in (await refused(far(server))).message
    server.models_statuses = [503, 500, 200]  # just restarting
    engine = RemoteEngine(far(server))
    await engine.start()
    assert engine.healthy()
    await engine.close()


async def test_start_with_a_server_that_is_silent(server: Server) -> None:
    server.silent = True
    assert "does not answer" in (await refused(far(server))).message
    server.silent = False


async def test_start_without_a_list(server: Server) -> None:
    server.models_statuses, server.health_status = [404], 503
    assert "not ready (503)" in (await refused(far(server))).message
    for server.health_status in (200, 404):  # with nothing to look at, the first request will show
        engine = RemoteEngine(far(server))
        await engine.start()
        await engine.close()
    server.models_statuses, server.models = [200], ["something", "else"]
    engine = RemoteEngine(far(server))
    await engine.start()
    await engine.close()


async def test_list_counts_more_than_health(server: Server) -> None:
    server.health_status = 503  # as a router's is that has lost one of its replicas
    engine = RemoteEngine(far(server))
    await engine.start()
    await asyncio.sleep(0.3)
    assert engine.healthy()
    await engine.close()


async def test_interrupted_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 60)
    server.models_statuses = [503]
    engine = RemoteEngine(far(server))
    task = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    engine.interrupt()
    with pytest.raises(EngineStartError, match="interrupted"):
        await task
    task = asyncio.create_task(RemoteEngine(far(server)).start())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("package", ["openai", "tenacity"])
async def test_missing_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"(?s){package}.*chancellor\[remote\]"):
        await RemoteEngine(far("http://127.0.0.1:9/v1")).start()


# Watching


async def test_server_that_goes_and_comes_back(engine: RemoteEngine, server: Server) -> None:
    server.stop()
    await until(lambda: not engine.healthy())
    server.start()
    await until(engine.healthy)
    assert text_of(await all_of(engine, ask())) == "one two three"


async def test_request_notices_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 3600)
    engine = RemoteEngine(far(server))
    await engine.start()
    server.stop()
    with pytest.raises(EngineDiedError, match="lost before"):
        await all_of(engine, ask())
    assert not engine.healthy()
    await engine.close()


@pytest.mark.parametrize("status", [500, 503])
async def test_router_without_replicas(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 3600)
    engine = RemoteEngine(far(server))
    await engine.start()
    server.statuses["x"] = (status, "No available workers", {})
    server.models_statuses = [status]
    with pytest.raises(EngineDiedError, match="No available workers"):
        await all_of(engine, ask("x"))
    assert not engine.healthy()
    await engine.close()


async def test_model_that_is_withdrawn(engine: RemoteEngine, server: Server) -> None:
    server.models = {"data": [{"id": "other"}]}
    await until(lambda: not engine.healthy())


async def test_one_bad_look_is_no_end(engine: RemoteEngine, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MISSES", 4)
    server.models_statuses = [500, 500, 500, 200]
    for _ in range(30):
        assert engine.healthy()
        await asyncio.sleep(0.02)
    assert server.models_statuses == [200]
    server.models_statuses = [500]
    await until(lambda: not engine.healthy())


async def test_silent_server(engine: RemoteEngine, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_STALL_S", "0.5")
    settings.cache_clear()
    server.streams["x"] = ["hang"]
    task = asyncio.create_task(all_of(engine, ask("x")))
    await until(lambda: server.requests)
    await asyncio.sleep(0.8)
    assert engine.stalled() is None  # a long answer, of a server that is there
    server.silent = True
    await until(lambda: engine.stalled() is not None)
    assert engine.healthy()
    engine.kill()
    with pytest.raises(EngineDiedError):
        await task
    assert not engine.healthy()
    server.silent = False
    settings.cache_clear()


async def test_silent_server_without_requests(engine: RemoteEngine, server: Server) -> None:
    server.silent = True
    await until(lambda: not engine.healthy())
    assert engine.stalled() is None
    server.silent = False
    await until(engine.healthy)


# In the pool


async def gathered(
    pool: EnginePool, spec: ModelSpec, request: GenerationRequest, ladder: Ladder | None = None
) -> list[Delta]:
    return [delta async for delta in pool.agenerate(spec, request, ladder)]


async def test_pool_asks_again(pool: EnginePool, server: Server) -> None:
    server.first["x"] = ["cut"]
    deltas = await gathered(pool, far(server), ask("x", retries=1))
    assert text_of(deltas) == "one two three"
    assert [step["step"] for step in deltas[-1].fallbacks] == ["restart"]


async def test_pool_does_not_go_on_with_half_an_answer(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "one "}), "cut"]
    with pytest.raises(GenerationError, match="in the middle"):
        await gathered(pool, far(server), ask("x", retries=5))
    assert len(server.requests) == 1


async def test_server_restarts_under_the_pool(
    pool: EnginePool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 3600)
    spec = far(server)
    assert text_of(await gathered(pool, spec, ask())) == "one two three"
    server.stop()
    with pytest.raises(EngineDiedError, match="lost before"):
        await gathered(pool, spec, ask())
    with pytest.raises(EngineStartError, match="cannot be reached"):
        await gathered(pool, spec, ask())
    server.start()
    assert text_of(await gathered(pool, spec, ask())) == "one two three"


async def test_another_model_answers(pool: EnginePool, server: Server) -> None:
    spec = far(server)
    server.stop()
    ladder = Ladder(FallbackOptions(), lambda: [HERE])
    deltas = await gathered(pool, spec, ask(), ladder)
    assert text_of(deltas) == "here says: hi"
    [step] = deltas[-1].fallbacks
    assert (step["step"], step["cause"], step["from"]) == ("other_model", "engine", "far (openai)")


async def test_server_answers_in_place_of_an_engine(pool: EnginePool, server: Server) -> None:
    FakeEngine.fail_starts = 100
    deltas = await gathered(pool, HERE, ask(), Ladder(FallbackOptions(), lambda: [far(server)]))
    assert text_of(deltas) == "one two three"
    assert (deltas[-1].model, deltas[-1].fallbacks[-1]["to"]) == ("far", "far (openai)")


async def test_server_that_drains_ends_its_answers(pool: EnginePool, server: Server) -> None:
    spec = far(server)
    server.streams["long"] = [chunk({"content": "a"}), 1.0, *words("b")]
    task = asyncio.create_task(gathered(pool, spec, ask("long")))
    await until(lambda: server.requests)
    server.drain()
    with suppress(EngineDiedError, EngineStartError):
        while True:  # until it refuses
            await gathered(pool, spec, ask())
    with pytest.raises(EngineStartError):  # for which the pool closes what it had
        await gathered(pool, spec, ask())
    assert text_of(await task) == "ab"


async def test_pool_closes_under_a_request(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "a"}), "hang"]
    task = asyncio.create_task(gathered(pool, far(server), ask("x", retries=1)))
    await until(lambda: server.requests)
    await asyncio.to_thread(pool.close)
    with pytest.raises(EngineDiedError):
        await task


async def test_pool_ends_what_is_silent(pool: EnginePool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_STALL_S", "0.3")
    settings.cache_clear()
    server.streams["x"] = ["hang"]
    task = asyncio.create_task(gathered(pool, far(server), ask("x")))
    await until(lambda: server.requests)
    server.silent = True
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(task, 20)
    server.silent = False
    settings.cache_clear()


async def test_timeout(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "a"}), "hang"]
    with pytest.raises(GenerationTimeoutError):
        await gathered(pool, far(server), ask("x", timeout_s=0.3))
    await until(lambda: server.left == ["x"])


class StartsForEver(FakeEngine):
    """Until it is interrupted."""

    async def start(self) -> None:
        self.stopped = asyncio.Event()
        await self.stopped.wait()
        raise EngineStartError("The fake was interrupted.")

    def interrupt(self) -> None:
        self.stopped.set()


async def test_server_does_not_wait_for_an_engine_that_starts(server: Server) -> None:
    pool = EnginePool(lambda spec: RemoteEngine(spec) if spec.engine.kind == "openai" else StartsForEver(spec))
    starting = asyncio.create_task(pool.astart(HERE))
    await until(lambda: pool.state(HERE) == "starting")
    assert text_of(await gathered(pool, far(server), ask())) == "one two three"
    assert not starting.done()
    await asyncio.to_thread(pool.close)
    with pytest.raises(ChancellorError):
        await starting


def test_default_pool_takes_servers(server: Server) -> None:
    pool = EnginePool()
    deltas = list(pool.generate(far(server), ask()))
    assert text_of(deltas) == "one two three"
    assert pool.stats()["far"].running == 0
    assert pool.start_s(far(server)) == 0
    pool.close()


# The ladder


def test_no_steps_but_to_other_models() -> None:
    spec = far("http://127.0.0.1:9/v1")
    ladder = Ladder(FallbackOptions(), lambda: [HERE])
    for cause in ("memory", "scheme", "engine", "import", "checkpoint", "died"):
        assert [(rung.step, rung.spec) for rung in ladder.below(spec, cause)] == [("other_model", HERE)]
    assert not Ladder(FallbackOptions()).leads_on(spec)
    assert label(spec) == "far (openai)"


def test_substitutes() -> None:
    url = "http://127.0.0.1:9/v1"
    sized = far(url, "far").model_copy(update={"parameters": 1_000})
    huge = far(url, "huge").model_copy(update={"parameters": 9_000})
    middle = HERE.model_copy(update={"name": "middle", "parameters": 2_000})
    unsized = far(url, "unsized")
    catalog = Catalog([unsized, huge, sized, HERE, middle])
    assert [one.name for one in substitutes(catalog, middle)] == ["here", "far", "huge", "unsized"]
    assert [one.name for one in substitutes(catalog, unsized)] == ["here", "middle", "huge", "far"]
