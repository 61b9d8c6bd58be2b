"""When a replica under Ray Serve mends its engines, and when it wants to be replaced; without Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import ClassVar

import pytest

from chancellor.catalog import Catalog, EngineOptions, ModelSpec
from chancellor.engines import Engine, EnginePool, remote, remote_server
from chancellor.engines.remote import RemoteEngine
from chancellor.errors import ChancellorError, EngineStartError
from chancellor.fallbacks import FallbackOptions
from chancellor.server.choice import Chooser
from chancellor.server.options import ServeOptions
from chancellor.server.ray_health import Health, elsewhere
from chancellor.server.readiness import Readiness
from tests.faulty import FaultyEngine, Plan
from tests.remote_server import Server, running

LIGHT = ModelSpec(name="light", source="fake/light", trinity=96)
STRONG = ModelSpec(name="strong", source="fake/strong", trinity=97)
ENDLESS = 10_000


class Held(FaultyEngine):
    """Its start takes as long as the test likes."""

    held: ClassVar[bool] = False

    async def start(self) -> None:
        while Held.held:  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        await super().start()


class Replica:
    """What a replica has to look after, and a clock that the test moves."""

    def __init__(self, *specs: ModelSpec, preload: tuple[str, ...] = ("light",)) -> None:
        self.engines: list[FaultyEngine] = []
        self.pool = EnginePool(self._made)
        self.catalog = Catalog(specs, fallback=FallbackOptions.none())
        options = ServeOptions(preload=preload)
        self.readiness = Readiness(self.catalog, options, self.pool, Chooser(self.catalog, self.pool))
        self.readiness.optional = elsewhere
        self.now = 1000.0
        self.health = Health(self.catalog, options, self.pool, self.readiness, clock=lambda: self.now)

    def _made(self, spec: ModelSpec) -> Engine:
        if elsewhere(spec):
            return RemoteEngine(spec)
        self.engines.append(Held(spec))
        return self.engines[-1]

    async def begin(self) -> "Replica":
        await self.readiness.prepare()
        return self

    async def looks(self, until: Callable[[], bool], most: int = 3000) -> None:
        """Look again and again, as Ray does, until something is so."""
        for _ in range(most):
            await self.health.check()
            if until():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("It did not come to that.")

    def runs(self, spec: ModelSpec = LIGHT) -> bool:
        return self.pool.state(spec) == "ready"

    def starts(self) -> list[str]:
        return [spec.name for spec in FaultyEngine.starts]


def broken(name: str, times: int = ENDLESS) -> dict[str, list[ChancellorError]]:
    return {f"{name}/vllm/None": [EngineStartError(f"Start {number}.") for number in range(times)]}


@pytest.fixture
async def made() -> AsyncIterator[Callable[..., Replica]]:
    FaultyEngine.reset()
    replicas: list[Replica] = []

    def make(*specs: ModelSpec, **options: tuple[str, ...]) -> Replica:
        replicas.append(Replica(*specs, **options))
        return replicas[-1]

    yield make
    Held.held = False
    for one in replicas:
        await one.health.close()
        await asyncio.to_thread(one.pool.close)
    FaultyEngine.reset()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(remote_server, "_PATIENCE_S", 0.2)
    with running() as server:
        yield server


def far(server: Server) -> ModelSpec:
    return ModelSpec(name="far", source="m", trinity=97, engine=EngineOptions(kind="openai", base_url=server.url))


async def test_first_starts_that_fail_end_the_replica(made: Callable[..., Replica]) -> None:
    FaultyEngine.plan = Plan(start_errors=broken("light"))
    replica = await made(LIGHT).begin()
    with pytest.raises(EngineStartError, match=r"Start 0\."):
        await replica.health.check()


async def test_a_dead_engine_is_started_again_though_nobody_asks(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    await replica.health.check()
    assert replica.starts() == ["light"]  # one that runs is left alone
    replica.engines[-1].kill()
    await replica.looks(replica.runs)
    assert replica.starts() == ["light"] * 2


async def test_so_is_one_that_was_not_there_from_the_beginning(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT, STRONG).begin()
    await replica.pool.astart(STRONG)
    replica.engines[-1].kill()
    await replica.looks(lambda: replica.runs(STRONG))
    assert replica.starts() == ["light", "strong", "strong"]


async def test_what_has_made_room_stays_stopped(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT, STRONG, preload=("light", "strong")).begin()
    await replica.pool.astop(LIGHT)
    for _ in range(5):
        await replica.health.check()
        await asyncio.sleep(0.01)
    assert replica.pool.state(LIGHT) == "stopped"


async def test_three_failed_starts_want_another_replica(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    FaultyEngine.plan = Plan(start_errors=broken("light"))
    replica.engines[-1].kill()
    with pytest.raises(EngineStartError, match=r"Start \d+\."):
        await replica.looks(lambda: False)
    assert len(replica.starts()) >= 4  # the first one, and three that failed
    for _ in range(5):  # Ray believes it after three times in a row
        with pytest.raises(EngineStartError):
            await replica.health.check()
        await asyncio.sleep(0.05)
    FaultyEngine.plan.start_errors = {}
    for _ in range(1200):  # it goes on to try
        with suppress(EngineStartError):
            await replica.health.check()
            break
        await asyncio.sleep(0.05)
    assert replica.runs()


async def test_two_failed_starts_do_not(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    FaultyEngine.plan = Plan(start_errors=broken("light", 2))
    replica.engines[-1].kill()
    await replica.looks(replica.runs)
    # Those before a start that went well are forgotten.
    FaultyEngine.plan = Plan(start_errors=broken("light", 2))
    replica.engines[-1].kill()
    await replica.looks(replica.runs)


async def test_no_failed_start_does_while_another_engine_runs(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT, STRONG, preload=("light", "strong")).begin()
    FaultyEngine.plan = Plan(start_errors=broken("strong"))
    replica.engines[-1].kill()
    await replica.looks(lambda: replica.starts()[:3] == ["light", "strong", "strong"])
    for _ in range(5):
        replica.now += 10_000
        await replica.health.check()
        await asyncio.sleep(0.01)
    assert replica.runs()


async def test_patience_with_a_replica_without_engines(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    Held.held = True
    replica.engines[-1].kill()
    await replica.health.check()
    replica.now += 119
    await replica.health.check()
    replica.now += 2
    with pytest.raises(RuntimeError, match="No engine has run for 121 s"):
        await replica.health.check()


async def test_patience_is_longer_where_starts_take_longer(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    replica.readiness.started["light"] = 100.0
    Held.held = True
    replica.engines[-1].kill()
    await replica.health.check()
    replica.now += 299
    await replica.health.check()
    replica.now += 2
    with pytest.raises(RuntimeError, match="No engine has run"):
        await replica.health.check()


async def test_patience_begins_anew_with_each_death(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT).begin()
    for _ in range(3):
        replica.engines[-1].kill()
        await replica.looks(replica.runs)
        await replica.health.check()
        replica.now += 100


async def test_a_model_that_takes_its_turn_is_not_disturbed(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT, STRONG).begin()
    await replica.pool.astop(LIGHT)  # makes room
    Held.held = True
    starting = asyncio.create_task(replica.pool.astart(STRONG))
    while replica.pool.state(STRONG) != "starting":  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.01)
    for _ in range(10):  # nobody knows yet how long its start takes
        replica.now += 100
        await replica.health.check()
        await asyncio.sleep(0.01)
    replica.now += 1000
    with pytest.raises(RuntimeError, match="No engine has run"):
        await replica.health.check()
    Held.held = False
    await starting
    await replica.looks(lambda: replica.health._mending is None)
    assert replica.starts() == ["light", "strong"]


async def test_a_replica_without_preloaded_models_waits_to_be_asked(made: Callable[..., Replica]) -> None:
    replica = await made(LIGHT, preload=("none",)).begin()
    for _ in range(3):
        replica.now += 10_000
        await replica.health.check()
    assert replica.starts() == []


async def test_an_outage_of_a_server_elsewhere_is_no_reason(made: Callable[..., Replica], server: Server) -> None:
    replica = await made(far(server), preload=("all",)).begin()
    assert set(replica.readiness.started) == {"far"}
    server.stop()
    spec = replica.catalog["far"]
    while replica.pool.state(spec) == "ready":  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.02)
    for _ in range(20):
        replica.now += 600
        await replica.health.check()
        await asyncio.sleep(0.02)


async def test_a_replica_begins_without_a_server_elsewhere(made: Callable[..., Replica], server: Server) -> None:
    server.stop()
    replica = await made(far(server), LIGHT, preload=("all",)).begin()
    assert replica.readiness.state == "ready"
    assert set(replica.readiness.started) == {"light"}
    await replica.health.check()


async def test_nor_does_it_wait_for_one_that_hangs(
    made: Callable[..., Replica], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chancellor.server.readiness._OPTIONAL_S", 0.2)
    server.wholes = {"What is the capital of France, and what should one see there?": "hang"}
    replica = await asyncio.wait_for(made(far(server), preload=("all",)).begin(), 30)
    assert replica.readiness.state == "ready"
    assert replica.readiness.started == {}


async def test_a_server_elsewhere_does_not_stand_in_for_engines(made: Callable[..., Replica], server: Server) -> None:
    replica = await made(far(server), LIGHT, preload=("all",)).begin()
    assert replica.runs(replica.catalog["far"])
    FaultyEngine.plan = Plan(start_errors=broken("light"))
    replica.engines[-1].kill()
    with pytest.raises(EngineStartError, match=r"Start \d+\."):
        await replica.looks(lambda: False)
