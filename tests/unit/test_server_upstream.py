"""The endpoint before models on servers: what callers hear when those fail, and what they do not hear."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from chancellor import Catalog, FallbackOptions, ModelSpec
from chancellor.catalog import EngineOptions
from chancellor.engines import EnginePool, remote, remote_server
from chancellor.engines.remote import RemoteEngine
from chancellor.server import ServeOptions, create_app
from tests import remote_server as fake_server
from tests.fakes import FakeEngine
from tests.remote_server import Server, chunk
from tests.serving import client_of, events

CHAT = "/v1/chat/completions"


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 3600)
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.3)
    with fake_server.running() as server:
        yield server


def catalog(server: Server, *, substitute: bool = False) -> Catalog:
    there = EngineOptions(kind="openai", base_url=server.url)
    models = [ModelSpec(name="far", source="m", trinity=97, engine=there, parameters=1_000)]
    if substitute:
        models.append(ModelSpec(name="here", source="fake/here", trinity=96, parameters=1_000))
    return Catalog(models, fallback=FallbackOptions(other_model=substitute))


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    FakeEngine.reset()
    pool = EnginePool(lambda spec: RemoteEngine(spec) if spec.engine.kind == "openai" else FakeEngine(spec))
    yield pool
    pool.close()


@pytest_asyncio.fixture
async def caller(upstream: Server, pool: EnginePool) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(catalog(upstream), ServeOptions(preload=("none",)), pool=pool)
    async with client_of(app) as client:
        yield client


def asked(question: str, **fields: Any) -> dict[str, Any]:
    return {"model": "far", "messages": [{"role": "user", "content": question}], **fields}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("upstreams", "status", "code"),
    [
        (400, 400, None),
        (401, 502, "upstream_error"),
        (403, 502, "upstream_error"),
        (404, 502, "upstream_error"),
        (408, 504, "timeout"),
        (409, 502, "upstream_error"),
        (429, 429, "engine_busy"),
        (500, 502, "upstream_error"),
        (502, 503, "engine_died"),
        (503, 429, "engine_busy"),
        (504, 504, "timeout"),
    ],
)
async def test_statuses(
    caller: httpx.AsyncClient, upstream: Server, stream: bool, upstreams: int, status: int, code: str | None
) -> None:
    told = {"error": {"message": f"I am {upstream.url} in rack 7", "code": None}}
    upstream.statuses["x"] = (upstreams, told, {})
    answer = await caller.post(CHAT, json=asked("x", stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert str(upstream.port) not in answer.text
    assert ("rack 7" in answer.text) == (status == 400)  # only what the caller can change
    assert "base_url" not in answer.text
    assert (await caller.post(CHAT, json=asked("hi", stream=stream))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage(caller: httpx.AsyncClient, upstream: Server, stream: bool) -> None:
    upstream.wholes["x"] = f"<html>{upstream.url}</html>"
    upstream.streams["x"] = [{"hello": upstream.url}, "[DONE]"]
    answer = await caller.post(CHAT, json=asked("x", stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert str(upstream.port) not in answer.text


@pytest.mark.parametrize("end", ["cut", {"error": {"message": "I am 127.0.0.1", "code": 500}}])
async def test_an_end_in_the_middle(caller: httpx.AsyncClient, upstream: Server, end: Any) -> None:
    upstream.streams["x"] = [chunk({"content": "one "}), end]
    answer = await caller.post(CHAT, json=asked("x", stream=True))
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["code"] == "upstream_error"
    assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_is_gone(caller: httpx.AsyncClient, upstream: Server, stream: bool) -> None:
    assert (await caller.post(CHAT, json=asked("hi", stream=stream))).status_code == 200
    upstream.stop()
    for _ in range(3):
        answer = await caller.post(CHAT, json=asked("hi", stream=stream))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert "127.0.0.1" not in answer.text
        assert str(upstream.port) not in answer.text


@pytest.mark.parametrize("trouble", ["stopped", "wrong key", "no model", "not ready"])
async def test_ready_has_no_address(upstream: Server, pool: EnginePool, trouble: str) -> None:
    if trouble == "stopped":
        upstream.stop()
    elif trouble == "no model":
        upstream.models = {"data": []}
    else:
        upstream.models_statuses = [401 if trouble == "wrong key" else 503]
    app = create_app(catalog(upstream), ServeOptions(preload=("far",)), pool=pool)
    async with client_of(app) as client:
        async with asyncio.timeout(30):
            while (report := await client.get("/ready")).json()["status"] == "starting":  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.01)
    assert report.status_code == 503
    assert "'far'" in report.json()["error"]
    assert "127.0.0.1" not in report.text
    assert str(upstream.port) not in report.text
    assert str(upstream.port) in app.state.chancellor.readiness.error.hint  # which is in the log


async def test_another_answers_and_the_reason_has_no_address(upstream: Server, pool: EnginePool) -> None:
    upstream.stop()
    app = create_app(catalog(upstream, substitute=True), ServeOptions(preload=("none",)), pool=pool)
    body = {**asked("hi"), "model": "chancellor", "chancellor": {"decision": True, "policy": "trinity"}}
    async with client_of(app) as client:
        answer = await client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-chancellor-model"] == answer.json()["model"] == "here"
    (step,) = answer.json()["chancellor"]["metrics"]["fallbacks"]
    assert step["reason"] == "The server of 'far' cannot be reached."
    assert "127.0.0.1" not in answer.text
