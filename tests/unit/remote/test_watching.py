"""Servers that go away and come back."""

import asyncio

import pytest

from chancellor.engines import remote
from chancellor.engines.remote import RemoteEngine
from chancellor.errors import EngineDiedError
from chancellor.settings import settings
from tests.remote_server import Server
from tests.unit.remote.asking import all_of, ask, far, text_of, until


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
    for _ in range(1000):
        assert engine.healthy()
        await asyncio.sleep(0.02)
        if server.models_statuses == [200]:
            break
    assert server.models_statuses == [200]
    for _ in range(10):
        assert engine.healthy()
        await asyncio.sleep(0.02)
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
