"""What goes wrong on a server, and what its caller is told."""

from email.utils import formatdate
from time import time
from typing import Any

import pytest

from chancellor.engines.remote import RemoteEngine
from chancellor.errors import (
    ChancellorError,
    EngineBusyError,
    EngineDiedError,
    GenerationTimeoutError,
    InvalidInputError,
    PromptTooLongError,
    UpstreamError,
)
from tests.remote_server import Server, chunk
from tests.unit.remote.asking import all_of, ask, text_of


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "message", "kind", "pattern"),
    [
        (400, "temperature must be positive", InvalidInputError, "temperature must be positive"),
        (422, "no field x", InvalidInputError, "no field x"),
        (413, "too many bytes", InvalidInputError, "too many bytes"),
        (400, "This model's maximum context length is 512 tokens.", PromptTooLongError, "512 tokens"),
        (400, "The decoder prompt (length 9) is longer than the maximum model length of 5", PromptTooLongError, "9"),
        (401, "bad key", UpstreamError, "does not take the key"),
        (403, "bad key", UpstreamError, "does not take the key"),
        (404, "no such model", UpstreamError, "has no model 'm'"),
        (408, "slow", GenerationTimeoutError, "gave up"),
        (504, "slow", GenerationTimeoutError, "gave up"),
        (429, "full", EngineBusyError, "no more requests"),
        (503, "full", EngineBusyError, "no more requests"),
        (500, "oops", UpstreamError, "oops"),
        (502, "no upstream", EngineDiedError, "no upstream"),
        (409, "conflict", UpstreamError, "conflict"),
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
    assert f":{server.port}" not in raised.value.message  # callers of the endpoint see it
    assert (message in raised.value.message) == (status in (400, 413, 422))
    if kind is UpstreamError:
        assert f"{server.url} says: {message}" in raised.value.hint
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


async def test_refusal_that_names_the_server(engine: RemoteEngine, server: Server) -> None:
    told = f"POST {server.url}/chat/completions at 127.0.0.1:{server.port}: no field x"
    server.statuses["x"] = (400, {"error": {"message": told}}, {})
    with pytest.raises(InvalidInputError, match="no field x") as raised:
        await all_of(engine, ask("x"))
    assert str(server.port) not in str(raised.value)


async def test_error_in_the_stream(engine: RemoteEngine, server: Server) -> None:
    def broken(code: object) -> dict[str, Any]:
        return {"error": {"message": "it broke", "type": "t", "code": code}}

    server.streams |= {"at once": [broken(400)], "later": [chunk({"content": "x"}), broken(400)]}
    server.streams["nameless"] = [broken(None)]
    with pytest.raises(InvalidInputError, match="it broke"):
        await all_of(engine, ask("at once"))
    with pytest.raises(UpstreamError, match=r"(?s)in the middle.*it broke"):
        await all_of(engine, ask("later"))
    with pytest.raises(UpstreamError, match="it broke"):
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
    with pytest.raises(UpstreamError, match="not of OpenAI's form") as raised:
        await all_of(engine, ask("x"))
    assert "base_url" in raised.value.hint
    assert raised.value.message.endswith("OpenAI's form.")  # and nothing of what came


async def test_page_in_place_of_an_answer(engine: RemoteEngine, server: Server) -> None:
    server.wholes["x"] = "<html>Welcome</html>"
    with pytest.raises(UpstreamError, match="not of OpenAI's form"):
        await all_of(engine, ask("x", stream=False))
    server.statuses["y"] = (200, {"choices": []}, {})  # JSON where a stream was asked for
    with pytest.raises(UpstreamError, match="not of OpenAI's form"):
        await all_of(engine, ask("y"))
