"""Who is let in, and how much of them."""

import asyncio
import hmac
from pathlib import Path
from typing import Any

import httpx
import pytest

from chancellor.engines import EnginePool
from chancellor.errors import InvalidInputError
from chancellor.server import ServeOptions
from tests.fakes import FakeEngine
from tests.serving import QUESTION, app_of, client_of

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "light", "messages": QUESTION}
CLOSED = ["/v1/models", "/v1/models/light", "/metrics", "/openapi.json", "/nothing", "/health/"]
OPEN = ["/health", "/ready", "/", "/page.css", "/page.js"]


@pytest.mark.parametrize("path", CLOSED)
async def test_what_needs_a_key(serving_pool: EnginePool, path: str) -> None:
    async with client_of(app_of(serving_pool, api_keys=("one", "two"))) as client:
        for authorization in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer three",
            "Bearer on",
            "Bearer onee",
            "Bearer one two",
            "Bearer one,two",
            "Basic one",
            "one",
            "Bearer \u00ff\u00fe",
        ):
            headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
            answer = await client.get(path, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, authorization
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["x-request-id"]
        for key in ("one", "two"):
            assert (await client.get(path, headers={"authorization": f"bearer {key}"})).status_code in (200, 404)


async def test_what_needs_no_key(serving_pool: EnginePool) -> None:
    async with client_of(app_of(serving_pool, api_keys=("one",))) as client:
        for path in OPEN:
            assert (await client.get(path)).status_code in (200, 503), path
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 401
        assert FakeEngine.requests == []
        assert (await client.post(CHAT, json=BODY, headers={"authorization": "Bearer one"})).status_code == 200


async def test_keys_from_a_file_beside_others(serving_pool: EnginePool, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\nfirst\n  schlüssel  \n")
    async with client_of(app_of(serving_pool, api_keys=("given",), api_key_file=path)) as client:
        for key, status in (("given", 200), ("first", 200), ("schlüssel", 200), ("# ours", 401), ("", 401)):
            answer = await client.get("/v1/models", headers=[(b"authorization", f"Bearer {key}".encode())])
            assert answer.status_code == status, key


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_file_without_keys_lets_nobody_in(serving_pool: EnginePool, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError):
        app_of(serving_pool, api_key_file=path)


def test_keys_of_the_environment_and_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_SERVE_API_KEYS", " a , b,")
    options = ServeOptions()
    assert options.keys() == (b"a", b"b")
    assert "b'a'" not in repr(options)
    assert "SecretStr('**********')" in repr(options)
    with pytest.raises(InvalidInputError):
        ServeOptions(api_keys=("a", ""))


async def test_every_key_is_compared_in_constant_time(
    serving_pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    real = hmac.compare_digest

    def compare(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return real(given, key)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with client_of(app_of(serving_pool, api_keys=("one", "two", "three"))) as client:
        for key in ("one", "three", "wrong"):
            compared.clear()
            await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert compared == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:9", 200),
        ("LocalHost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
async def test_names_of_a_local_server(client: httpx.AsyncClient, host: str, status: int) -> None:
    assert (await client.get("/health", headers={"host": host})).status_code == 200  # probes know no names
    for path in ("/ready", "/v1/models", "/"):
        answer = await client.get(path, headers={"host": host})
        assert answer.status_code == status, answer.text
        if status != 200:
            assert answer.json()["error"]["code"] == "wrong_host"
    answer = await client.post(CHAT, json=BODY, headers={"host": host})
    assert answer.status_code == status
    assert len(FakeEngine.requests) == (status == 200)


@pytest.mark.parametrize(
    ("options", "host", "status"),
    [
        ({"allowed_hosts": ("models.example",)}, "models.example:443", 200),
        ({"allowed_hosts": ("models.example",)}, "127.0.0.1", 421),
        ({"allowed_hosts": "a.example, b.example"}, "b.example", 200),
        ({"host": "0.0.0.0"}, "whoever.example", 200),
        ({"host": "192.168.1.5"}, "whoever.example", 200),
        ({"host": "::1"}, "whoever.example", 421),
        ({"host": "127.0.0.2"}, "127.0.0.2:80", 200),
        ({"host": "localhost"}, "whoever.example", 421),
        ({"api_keys": ("k",)}, "whoever.example", 200),
        ({"api_keys": ("k",), "allowed_hosts": ("a.example",)}, "whoever.example", 421),
    ],
)
async def test_names_of_other_servers(
    serving_pool: EnginePool, options: dict[str, Any], host: str, status: int
) -> None:
    async with client_of(app_of(serving_pool, **options)) as client:
        assert (await client.get("/", headers={"host": host})).status_code == status


async def test_no_other_pages_script_may_read_an_answer(client: httpx.AsyncClient) -> None:
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    asked = await client.options(CHAT, headers=origin)
    assert asked.status_code == 405
    answer = await client.post(CHAT, json=BODY, headers=origin)
    page = await client.get("/", headers=origin)
    for found in (asked, answer, page):
        assert not [name for name in found.headers if name.startswith("access-control")]
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", None],
)
async def test_what_a_form_of_another_page_could_send_is_refused(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = b'{"model": "light", "messages": [{"role": "user", "content": "x"}]}'
    answer = await client.post(CHAT, content=body, headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]
    assert FakeEngine.requests == []
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert (await client.post(CHAT, content=body, headers={"content-type": kind})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("PATCH", "/metrics", 405),
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/health/", 404),
        ("GET", "/docs", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page.css/../../options.py", 404),
    ],
)
async def test_what_there_is_not(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path, json=BODY if method == "POST" else None)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)
    assert "location" not in answer.headers


async def test_heads(client: httpx.AsyncClient) -> None:
    for path in (CHAT, "/v1/models"):
        assert (await client.head(path)).status_code == 405
    for path in ("/health", "/ready"):  # which balancers look at
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_the_head_of_an_endpoint_that_is_not_ready(serving_pool: EnginePool) -> None:
    app = app_of(serving_pool)
    async with client_of(app) as client:
        app.state.chancellor.readiness.draining = True
        assert (await client.head("/ready")).status_code == 503
        assert (await client.head("/health")).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large(serving_pool: EnginePool, announced: bool) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 1024

    async with client_of(app_of(serving_pool, max_body_mib=0.03)) as client:
        content: Any = b"x" * 40 * 1024 if announced else pieces()
        answer = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert "0.03 MiB" in answer.json()["error"]["message"]
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_more_than_can_be_under_way(serving_pool: EnginePool) -> None:
    waiting = {"model": "light", "messages": [{"role": "user", "content": "wait"}]}
    async with client_of(app_of(serving_pool, max_requests=2)) as client:
        tasks = [asyncio.create_task(client.post(CHAT, json=waiting)) for _ in range(2)]
        while len(FakeEngine.requests) < 2:  # noqa: ASYNC110 - the engines are on another thread
            await asyncio.sleep(0.01)
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "server_busy"
        for path in ("/health", "/v1/models", "/metrics"):  # who looks is let in all the same
            assert (await client.get(path)).status_code == 200
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_ids_of_requests(client: httpx.AsyncClient) -> None:
    for given, kept in (("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a\tb", False)):
        answer = await client.get("/health", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == kept
    answer = await client.get("/health", headers=[(b"x-request-id", "ü".encode())])
    assert answer.headers["x-request-id"].isascii()


async def test_labels_of_metrics_come_from_no_caller(client: httpx.AsyncClient) -> None:
    for number in range(20):
        await client.get(f"/v1/models/name{number}")
        await client.get(f"/path{number}")
        await client.request(f"METHOD{number}", CHAT)
        await client.post(CHAT, json={**BODY, "model": f"name{number}"})
    await client.post(CHAT, json={**BODY, "user": "name-of-user"})
    text = (await client.get("/metrics")).text
    assert 'chancellor_http_requests_total{outcome="error",route="/v1/models/{name:path}",status="404"} 20.0' in text
    assert 'chancellor_http_requests_total{outcome="error",route="other",status="404"} 20.0' in text
    assert f'chancellor_http_requests_total{{outcome="error",route="{CHAT}",status="404"}} 20.0' in text
    assert f'chancellor_http_requests_total{{outcome="error",route="{CHAT}",status="405"}} 20.0' in text
    for word in ("name1", "path1", "METHOD1", "name-of-user"):
        assert word not in text
    assert 'chancellor_requests_total{engine="fake",model="light",outcome="stop",quantization="int8"} 1.0' in text
