"""A replica under Ray Serve, without a cluster: how it starts, answers, and lets go of callers who hang up."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.types import Message

from chancellor.catalog import Catalog, EngineOptions, ModelSpec
from chancellor.engines import EnginePool, remote, remote_server
from chancellor.errors import EngineStartError
from tests.fakes import FakeEngine, catalog
from tests.remote_server import Server, running
from tests.serving import Scripted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic
CHAT = "/v1/chat/completions"
Make = Callable[..., Awaitable[Any]]


@pytest.fixture
async def replica(monkeypatch: pytest.MonkeyPatch, fake_engine: type[FakeEngine]) -> AsyncIterator[Make]:
    """Make replicas as Ray does, and end them so."""
    from chancellor.server import ray_replica

    class Replica(ray_replica.Engines):
        def __del__(self) -> None:  # type: ignore[override] # Ray awaits the other
            """Python calls this one, too, which is not to end anything."""

    monkeypatch.setattr(ray_replica, "log_to_stderr", lambda: None)
    begun: list[Replica] = []

    async def make(models: Catalog, factory: Any = Scripted, **given: Any) -> Replica:
        monkeypatch.setattr(ray_replica, "EnginePool", lambda: EnginePool(factory))
        made = Replica.__new__(Replica)
        begun.append(made)
        await made.__init__(models, given)  # type: ignore[misc]
        return made

    yield make
    for one in begun:
        await ray_replica.Engines.__del__(one)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.2)
    with running() as server:
        yield server


def scope(method: str = "POST", path: str = CHAT) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    asked = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path}
    return {**asked, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers}


def body(question: str = "hello there", **more: Any) -> bytes:
    return json.dumps({"model": "light", "messages": [{"role": "user", "content": question}], **more}).encode()


async def answer(replica: Any, asked: bytes) -> tuple[int, bytes]:
    messages: list[Message] = [one async for several in replica.answer(scope(), asked) for one in several]
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:])


async def counted(replica: Any) -> set[tuple[str, str]]:
    """Return the statuses and outcomes that its metrics have."""
    return {
        (sample.labels["status"], sample.labels["outcome"])
        for family in replica._app.state.registry.collect()
        for sample in family.samples
        if sample.name == "chancellor_http_requests_total" and sample.value
    }


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("It did not come to that.")


async def test_it_answers_whole_and_in_pieces(replica: Make) -> None:
    made = await replica(catalog(), preload=("light",))
    assert FakeEngine.started == ["light"]
    status, text = await answer(made, body())
    assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, "light says: hello there")
    status, text = await answer(made, body(stream=True))
    assert (status, text.splitlines()[-2]) == (200, b"data: [DONE]")
    await made.check_health()


async def test_a_first_start_that_fails_is_told_to_ray(replica: Make) -> None:
    FakeEngine.fail_starts = 100
    with pytest.raises(EngineStartError):
        await replica(catalog(), preload=("light",))


async def test_it_begins_without_the_servers_of_its_catalog_and_stays(replica: Make, server: Server) -> None:
    options = EngineOptions(kind="openai", base_url=server.url)
    server.stop()
    made = await replica(
        Catalog([ModelSpec(name="light", source="m", trinity=97, engine=options)]), None, preload=("all",)
    )
    for _ in range(3):
        await made.check_health()
    status, text = await answer(made, body())
    assert (status, json.loads(text)["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize("stream", [False, True])
async def test_who_hangs_up_before_the_answer_is_counted_as_such(replica: Make, stream: bool) -> None:
    made = await replica(catalog(), preload=("light",))

    async def ask() -> None:
        async with aclosing(made.answer(scope(), body("wait", stream=stream))) as pieces:
            async for _ in pieces:
                pass

    asking = asyncio.create_task(ask())
    await until(lambda: any(request.messages[-1]["content"] == "wait" for request in FakeEngine.requests))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: FakeEngine.aborted == ["wait"])
    assert await counted(made) == {("499", "cancelled")}  # and not 503, as if the server were ending


async def test_who_hangs_up_in_a_stream_frees_the_engine(replica: Make) -> None:
    made = await replica(catalog(), preload=("light",))
    async with aclosing(made.answer(scope(), body("endless", stream=True))) as pieces:
        async for several in pieces:
            if several[-1]["type"] == "http.response.body":
                break
    await until(lambda: FakeEngine.aborted == ["endless"])
    assert await counted(made) == {("200", "cancelled")}
