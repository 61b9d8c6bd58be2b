"""Whether the endpoint can answer, from its start to its end; and what it logs."""

import asyncio
import io
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chancellor.engines import EnginePool
from chancellor.errors import EngineStartError, InvalidInputError, UnknownModelError
from chancellor.server import ServeOptions
from chancellor.server.logs import json_lines
from chancellor.server.readiness import Readiness
from tests.fakes import FakeEngine
from tests.serving import QUESTION, app_of, client_of

CHAT = "/v1/chat/completions"
SECRET = "the-secret-of-the-prompt"
HEARD = [{"role": "user", "content": SECRET}]


async def becomes(client: httpx.AsyncClient, status: str) -> Any:
    for _ in range(500):
        answer = await client.get("/ready")
        report = answer.json()
        assert answer.status_code == (200 if report["status"] == "ready" else 503)
        if report["status"] == status:
            return report
        await asyncio.sleep(0.01)
    raise AssertionError(report)


@pytest.mark.parametrize(
    ("preload", "started"),
    [
        (("none",), []),
        (("auto",), ["best"]),
        (("all",), ["light", "best", "strong"]),
        (("strong", "light"), ["strong", "light"]),
        ("light", ["light"]),
    ],
)
async def test_from_starting_to_ready(serving_pool: EnginePool, preload: Any, started: list[str]) -> None:
    FakeEngine.held = True
    async with client_of(app_of(serving_pool, preload=preload)) as client:
        if started:
            report = await becomes(client, "starting")
            assert set(report["models"]) == {"light", "best", "strong"}
        FakeEngine.held = False
        report = await becomes(client, "ready")
        assert sorted(FakeEngine.started) == sorted(started)
        states = {name for name, model in report["models"].items() if model["state"] == "ready"}
        assert states == set(started)
        assert "error" not in report
        assert (await client.get("/health")).json() == {"status": "ok"}


async def test_a_request_while_the_engines_start_is_answered(serving_pool: EnginePool) -> None:
    FakeEngine.held = True
    async with client_of(app_of(serving_pool, preload=("light",))) as client:
        asked = asyncio.create_task(client.post(CHAT, json={"model": "light", "messages": QUESTION}))
        await asyncio.sleep(0.1)
        assert (await client.get("/ready")).json()["status"] == "starting"
        FakeEngine.held = False
        assert (await asked).status_code == 200
        await becomes(client, "ready")
    assert FakeEngine.started == ["light"]


async def test_a_failed_start(serving_pool: EnginePool) -> None:
    FakeEngine.fail_starts = 100
    async with client_of(app_of(serving_pool, preload=("light",))) as client:
        report = await becomes(client, "failed")
        assert "did not start" in report["error"]
        assert (await client.get("/health")).status_code == 200


async def test_a_start_that_fails_in_a_node_of_ones_own(serving_pool: EnginePool) -> None:
    def analyze(_: Any) -> Any:
        raise KeyError("no such thing")

    app = app_of(serving_pool, preload=("auto",), analyze=analyze)
    readiness: Readiness = app.state.chancellor.readiness
    ended: list[bool] = []
    readiness.on_end = lambda: ended.append(True)
    async with client_of(app) as client:
        report = await becomes(client, "failed")
    assert "KeyError" in report["error"]
    assert isinstance(readiness.error, EngineStartError)
    assert ended == [True]


async def test_draining(serving_pool: EnginePool) -> None:
    app = app_of(serving_pool)
    async with client_of(app) as client:
        await becomes(client, "ready")
        app.state.chancellor.readiness.draining = True
        await becomes(client, "draining")


@pytest.mark.parametrize(
    ("preload", "error"),
    [(("nobody",), UnknownModelError), (("all", "light"), InvalidInputError), (("poor",), Exception)],
)
def test_models_that_cannot_be_preloaded(serving_pool: EnginePool, preload: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        app_of(serving_pool, preload=preload)


@pytest.mark.parametrize(
    "options",
    [
        {"port": -1},
        {"port": 65536},
        {"port": "eighty"},
        {"max_requests": 0},
        {"max_body_mib": 0},
        {"timeout_s": 0},
        {"drain_s": -1},
        {"max_tokens_limit": 0},
        {"ping_s": 0},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        ServeOptions(**options)


def test_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_SERVE_PORT", "9")
    monkeypatch.setenv("CHANCELLOR_SERVE_PRELOAD", "a, b")
    monkeypatch.setenv("CHANCELLOR_SERVE_ALLOWED_HOSTS", "x.example")
    monkeypatch.setenv("CHANCELLOR_SERVE_LOG_PROMPTS", "true")
    options = ServeOptions(port=10)
    assert (options.port, options.preload, options.allowed_hosts) == (10, ("a", "b"), ("x.example",))
    assert options.log_prompts


async def logged(pool: EnginePool, act: Callable[[httpx.AsyncClient], Any], **options: Any) -> list[dict[str, Any]]:
    """Return the log's lines as `chancellor serve` writes them."""
    stream = io.StringIO()
    handler, logger = json_lines(stream), logging.getLogger("chancellor")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        async with client_of(app_of(pool, **options)) as client:
            await act(client)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_for_each_request(serving_pool: EnginePool, stream: bool) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        body = {"model": "chancellor", "messages": HEARD, "stream": stream}
        await client.post(CHAT, json=body, headers={"x-request-id": "mine"})
        await client.get("/health")

    (line,) = await logged(serving_pool, act)
    assert line["message"] == "request"
    assert line["logger"] == "chancellor.server.requests"
    assert (line["request_id"], line["status"], line["method"], line["path"]) == ("mine", 200, "POST", CHAT)
    assert (line["model"], line["stream"], line["choices"]) == ("light", stream, 1)
    assert (line["input_tokens"], line["output_tokens"], line["finish_reasons"]) == (3, 3, ["stop"])
    assert line["duration_s"] >= 0
    assert line["time"]
    assert SECRET not in json.dumps(line)


async def test_prompts_are_in_no_line_whatever_happens(serving_pool: EnginePool) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        for fields in (
            {"messages": HEARD, "temperature": 9},
            {"messages": HEARD, "model": "nobody"},
            {"messages": [{"role": "clown", "content": SECRET}]},
            {"messages": HEARD, "stop": [SECRET] * 20},
            {"messages": [*HEARD, {"role": "user", "content": "boom"}]},
            {"messages": [*HEARD, {"role": "user", "content": "break"}], "stream": True},
            {"messages": [*HEARD, {"role": "user", "content": "busy"}]},
            {"messages": [*HEARD, {"role": "user", "content": "wait"}]},
        ):
            await client.post(CHAT, json={"model": "light", **fields})
        await client.post("/v1/completions", json={"model": "light", "prompt": SECRET, "echo": True})
        await client.post(CHAT, content=SECRET)

    lines = await logged(serving_pool, act, timeout_s=0.2, log_prompts=False)
    assert len([line for line in lines if line["message"] == "request"]) == 10
    assert SECRET not in json.dumps(lines)


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_and_answers_where_they_are_asked_for(serving_pool: EnginePool, stream: bool) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        await client.post(CHAT, json={"model": "light", "messages": HEARD, "stream": stream, "n": 2})
        await client.post("/v1/completions", json={"model": "light", "prompt": [1, 2], "stream": stream})

    chat, raw = await logged(serving_pool, act, log_prompts=True)
    assert chat["prompt"] == HEARD
    assert chat["answers"] == [f"light says: {SECRET}"] * 2
    assert raw["prompt"] == [[1, 2]]
    assert raw["answers"] == ["light says: (1, 2)"]


async def test_lines_stay_lines(serving_pool: EnginePool) -> None:
    nasty = 'x\n{"message": "request", "status": 200}\u2028\x00'

    async def act(client: httpx.AsyncClient) -> None:
        await client.get("/%0a%7b%22message%22:1%7d%0d%00")
        await client.post(CHAT, json={"model": nasty, "messages": QUESTION})
        await client.post(CHAT, json={"model": "light", "messages": [{"role": "user", "content": nasty}]})

    lines = await logged(serving_pool, act, log_prompts=True)
    assert [line["status"] for line in lines] == [404, 404, 200]
    assert lines[2]["answers"] == [f"light says: {nasty}"]
