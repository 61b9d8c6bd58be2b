"""The first look at a server."""

import asyncio
import sys

import pytest

from chancellor import ModelSpec
from chancellor.engines import remote_server
from chancellor.engines.remote import RemoteEngine
from chancellor.errors import EngineStartError, MissingDependencyError
from tests.remote_server import Server
from tests.unit.remote.asking import far


async def refused(spec: ModelSpec) -> EngineStartError:
    engine = RemoteEngine(spec)
    with pytest.raises(EngineStartError) as raised:
        await engine.start()
    assert not engine.healthy()
    return raised.value


async def test_start_without_a_server(server: Server) -> None:
    server.stop()
    error = await refused(far(server.url.replace("//", "//user:password@")))
    assert error.message == "The server of 'far' cannot be reached."  # callers of the endpoint see it
    assert f"curl {server.url}/models" in error.hint
    assert "password" not in str(error)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/v1", "http://127.0.0.1:x/v1"])
async def test_start_with_a_wrong_url(url: str) -> None:
    error = await refused(far(url))
    assert "base_url" in error.hint
    assert url not in error.message


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


async def test_start_of_a_server_that_is_not_ready(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.models_statuses = [503]
    error = await refused(far(server))
    assert error.message == "The server of 'far' is not ready (503)."
    assert "no list" in error.hint
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 60)
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
