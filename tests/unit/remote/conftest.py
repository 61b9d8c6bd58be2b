"""Fixtures of the tests of models on servers."""

from collections.abc import AsyncIterator, Iterator

import pytest

from chancellor import ModelSpec
from chancellor.engines import Engine, EnginePool, remote, remote_server
from chancellor.engines.remote import RemoteEngine
from tests.fakes import FakeEngine
from tests.remote_server import Server, running
from tests.unit.remote.asking import far


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
