"""What goes wrong, and what the caller is told of it."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from chancellor import errors
from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.server.errors import refusal_of
from tests.fakes import FakeEngine
from tests.serving import QUESTION, app_of, client_of, events

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
KINDS: list[tuple[errors.ChancellorError, int, str, str | None]] = [
    (errors.InvalidInputError("m"), 400, "invalid_request_error", None),
    (errors.EmptyQuestionError("m"), 400, "invalid_request_error", None),
    (errors.InvalidContextError("m"), 400, "invalid_request_error", None),
    (errors.PromptTooLongError("m"), 400, "invalid_request_error", "context_length_exceeded"),
    (errors.UnknownChoiceError("m"), 400, "invalid_request_error", None),
    (errors.UnknownModelError("m"), 404, "invalid_request_error", "model_not_found"),
    (errors.ModelRejectedError("m"), 404, "invalid_request_error", "model_not_found"),
    (errors.EngineBusyError("m"), 429, "rate_limit_error", "engine_busy"),
    (errors.GenerationError("m"), 500, "server_error", None),
    (errors.UpstreamError("m"), 502, "server_error", "upstream_error"),
    (errors.NoEligibleModelError("m"), 503, "server_error", "no_model"),
    (errors.EngineDiedError("m"), 503, "server_error", "engine_died"),
    (errors.EngineStartError("m"), 503, "server_error", "engine_unavailable"),
    (errors.OutOfMemoryError("m"), 503, "server_error", "engine_unavailable"),
    (errors.BrokenCheckpointError("m"), 503, "server_error", "engine_unavailable"),
    (errors.DownloadError("m"), 503, "server_error", "engine_unavailable"),
    (errors.MissingDependencyError("m"), 503, "server_error", "engine_unavailable"),
    (errors.GenerationTimeoutError("m"), 504, "timeout_error", "timeout"),
]


def _all(kind: type[errors.ChancellorError]) -> set[type[errors.ChancellorError]]:
    return {kind, *(one for below in kind.__subclasses__() for one in _all(below))}


def test_every_error_of_the_package_has_a_status() -> None:
    for kind in _all(errors.ChancellorError):
        refusal = refusal_of(kind("It failed."))
        assert refusal.status in (400, 404, 429, 500, 502, 503, 504), kind
        assert "It failed." in refusal.message


@pytest.mark.parametrize(("error", "status", "type_", "code"), KINDS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token(
    error: errors.ChancellorError, status: int, type_: str, code: str | None, stream: bool
) -> None:
    class Failing(FakeEngine):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
            raise type(error)("It failed.", hint="Do better.")
            yield Delta("")

    FakeEngine.reset()
    pool = EnginePool(Failing)
    try:
        async with client_of(app_of(pool)) as client:
            answer = await client.post(CHAT, json={"model": "light", "messages": QUESTION, "stream": stream})
    finally:
        pool.close()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    told = body["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (told["type"], told["code"]) == (type_, code)
    assert told["param"] == ("model" if code == "model_not_found" else None)
    assert "It failed." in told["message"]
    inside = status in (429, 500, 502, 503)  # their hints are for whoever runs the server
    assert ("Do better." in told["message"]) != inside
    assert ("retry-after" in answer.headers) == (status == 429)


async def test_who_is_sent_away_hears_when_to_come_again(client: httpx.AsyncClient) -> None:
    body = {"model": "light", "messages": [{"role": "user", "content": "busy"}]}
    for stream in (False, True):
        answer = await client.post(CHAT, json={**body, "stream": stream})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_come(serving_pool: EnginePool, stream: bool) -> None:
    body = {"model": "light", "messages": [{"role": "user", "content": "wait"}], "stream": stream}
    async with client_of(app_of(serving_pool, timeout_s=1.0)) as client:
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 504, answer.text
        assert answer.json()["error"]["code"] == "timeout"
        assert (await client.post(CHAT, json={"model": "light", "messages": QUESTION})).status_code == 200
    assert FakeEngine.aborted == ["wait"]


async def test_a_stream_that_takes_too_long(serving_pool: EnginePool) -> None:
    body = {"model": "light", "messages": [{"role": "user", "content": "endless"}], "stream": True}
    async with client_of(app_of(serving_pool, timeout_s=2.0)) as client:
        answer = await client.post(CHAT, json=body)
    assert answer.status_code == 200
    found = events(answer.text)
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1]["error"]["code"] == "timeout"
    assert FakeEngine.aborted == ["endless"]


@pytest.mark.parametrize("path", [CHAT, RAW])
@pytest.mark.parametrize("n", [1, 2])
async def test_an_error_in_mid_stream(client: httpx.AsyncClient, path: str, n: int) -> None:
    fields = {"prompt": "break"} if path == RAW else {"messages": [{"role": "user", "content": "break"}]}
    answer = await client.post(path, json={"model": "light", "stream": True, "n": n, **fields})
    assert answer.status_code == 200
    *chunks, last = events(answer.text)
    assert "It begins" in json.dumps(chunks)
    assert set(last) == {"error"}
    assert last["error"]["type"] == "server_error"
    assert "The fake gave up." in last["error"]["message"]
    plain = await client.post(path, json={"model": "light", "n": n, **fields})
    assert plain.status_code == 500
    assert "The fake gave up." in plain.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unexpected_error_is_logged_with_the_requests_id_and_told_without_details(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    body = {"model": "light", "messages": [{"role": "user", "content": "boom"}], "stream": stream}
    with caplog.at_level(logging.INFO):
        answer = await client.post(CHAT, json=body, headers={"x-request-id": "my-id"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "my-id"
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    failed = next(record for record in caplog.records if record.exc_info)
    assert getattr(failed, "request_id", None) == "my-id"
    assert "secret detail" in str(failed.exc_info)
    line = next(record for record in caplog.records if record.message == "request")
    assert (line.status, line.error) == (500, "ValueError")  # type: ignore[attr-defined]


async def test_an_unexpected_error_in_mid_stream(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "light", "messages": [{"role": "user", "content": "crash"}], "stream": True}
    with caplog.at_level(logging.INFO):
        answer = await client.post(CHAT, json=body)
    last = events(answer.text)[-1]
    assert last["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert any(record.exc_info and "secret detail" in str(record.exc_info) for record in caplog.records)


async def test_a_node_of_ones_own_that_fails(serving_pool: EnginePool) -> None:
    def analyze(_: Any) -> Any:
        raise KeyError("secret detail")

    async with client_of(app_of(serving_pool, analyze=analyze)) as client:
        answer = await client.post(CHAT, json={"model": "chancellor", "messages": QUESTION})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert (await client.post(CHAT, json={"model": "light", "messages": QUESTION})).status_code == 200


def _nested(levels: int) -> str:
    schema = "{}"
    for _ in range(levels):
        schema = f'{{"items":{schema}}}'
    return f'{{"type":"array","items":{schema}}}'


BODIES = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "half": b'{"model": "light", "messages": [{"role"',
    "two": b'{"model": "light"} {}',
    "invalid UTF-8": b'{"model": "light\xff", "messages": []}',
    "UTF-16": '{"model": "light"}'.encode("utf-16"),
    "many brackets": b"[" * 100_000,
    "many braces": b'{"a":' * 100_000,
    "a huge number": b'{"model": "light", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    "a large exponent": b'{"model": "light", "prompt": "x", "temperature": 1e999}',
    "NaN": b'{"model": "light", "prompt": "x", "temperature": NaN}',
    "Infinity in a bias": b'{"model": "light", "prompt": "x", "logit_bias": {"1": Infinity}}',
    "half a pair": b'{"model": "light", "prompt": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}]}',
    "half a pair as a name": b'{"model": "light", "prompt": "x", "\\ud800": 1}',
    "half a pair as a model": b'{"model": "\\ud800", "prompt": "x"}',
    "a deep schema": (
        '{"model": "light", "messages": [{"role": "user", "content": "x"}], "structured_outputs": {"json": '
        + _nested(400)
        + "}}"
    ).encode(),
    "deep tools": (
        '{"model": "light", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", '
        '"function": {"name": "f", "parameters": ' + _nested(400) + "}}]}"
    ).encode(),
    "NaN in a schema": (
        b'{"model": "light", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": '
        b'"json_schema", "json_schema": {"name": "x", "schema": {"type": "number", "maximum": NaN}}}}'
    ),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_bodies_that_are_no_request(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert FakeEngine.requests == []


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_characters_that_are_text_all_the_same(client: httpx.AsyncClient, path: str) -> None:
    text = "\x00\x07\ufffe\u200f\U0010ffff"
    body = json.dumps(
        {"model": "light", "prompt": text}
        if path == RAW
        else {"model": "light", "messages": [{"role": "user", "content": text}]}
    )  # with escapes, of which one is a whole pair
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert text in str(answer.json()["choices"][0].get("text") or answer.json()["choices"][0]["message"]["content"])
