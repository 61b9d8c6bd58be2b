"""Engines that sleep instead of stopping, and what goes wrong with that."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from chancellor.catalog import ModelSpec
from chancellor.engines import EnginePool, sleepers
from chancellor.errors import OutOfMemoryError
from chancellor.telemetry import PrometheusExporter
from tests.entries import GIB
from tests.faulty import ANSWER, A, B, FaultyEngine, answered, request, until, whole
from tests.sleepy import C, Hall, Sleepy, dead_engine, resident

Make = Callable[[float], EnginePool]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Pools on a GPU of so many GiB, where it does not take long to be patient.

    They may take long to fall asleep and to wake, for this machine may stand still; what hangs has its own limits.
    """
    Sleepy.fresh()
    for name, value in {
        "_SLEEP_S": 0.01,
        "WAKE_S": 0.01,
        "_SLEEP_LIMIT_S": 60.0,
        "_WAKE_LIMIT_S": 60.0,
        "_FREED_S": 0.2,
        "host_free": lambda: 100 * GIB,
    }.items():
        monkeypatch.setattr(sleepers, name, value)
    monkeypatch.setattr("chancellor.engines.swap._FREED_S", 0.2)
    monkeypatch.setattr("chancellor.engines.swap._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("chancellor.engines.swap._PATIENCE_S", (0.05, 0.5))
    pools: list[EnginePool] = []

    def made(size: float) -> EnginePool:
        pools.append(EnginePool(Sleepy, room=Hall(size)))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close()
    assert not any(FaultyEngine.alive.values())
    assert Sleepy.wrong == []
    Sleepy.fresh()


def ask(pool: EnginePool, *models: ModelSpec) -> None:
    for model in models:
        deltas = list(pool.generate(model, request()))
        assert (whole(deltas), deltas[-1].model) == (ANSWER, model.name)


def starts() -> list[str]:
    return [spec.name for spec in FaultyEngine.starts]


def test_it_sleeps_instead_of_stopping(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    assert Sleepy.log == ["sleep a"]
    assert (pool.state(A), pool.state(B)) == ("asleep", "ready")
    assert pool.asleep() == {"a": True, "b": False}
    assert pool.swaps() == {"sleep": 1}


def test_two_take_turns_without_a_start(make: Make) -> None:
    pool = make(24)
    ask(pool, *[A, B] * 5)
    assert starts() == ["a", "b"]
    assert Sleepy.log[:4] == ["sleep a", "sleep b", "wake a", "sleep a"]
    assert pool.swaps() == {"sleep": 9, "wake": 8}


def test_its_wake_is_known_beforehand(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    assert pool.start_s(A) == 1.0  # as long as nobody knows
    Sleepy.slow_s = 0.2
    began = time.perf_counter()
    ask(pool, A, B)
    took = pool.start_s(A)
    assert took is not None
    assert 0.19 <= took <= time.perf_counter() - began - 0.59  # the three other steps are no part of it


def test_another_answer_after_its_sleep_ends_it_and_it_sleeps_no_more(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    Sleepy.faults.add("answer")
    ask(pool, A)
    assert starts() == ["a", "b", "a"]
    assert Sleepy.log == ["sleep a", "sleep b", "wake a", "kill a", "close a"]
    ask(pool, B)
    assert "close a" in Sleepy.log[5:]
    assert "sleep a" not in Sleepy.log[5:]


@pytest.mark.parametrize("fault", ["sleep fails", "sleep hangs", "sleep dies", "sleep keeps"])
def test_one_that_does_not_fall_asleep_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    pool = make(24)
    Sleepy.faults.add(fault)
    if fault == "sleep hangs":  # a death is noticed long before the limit
        monkeypatch.setattr(sleepers, "_SLEEP_LIMIT_S", 0.4)
    began = time.perf_counter()
    ask(pool, A, B, A)
    assert time.perf_counter() - began < 30
    assert Sleepy.log == ["sleep a", "kill a", "close a", "sleep b", "kill b", "close b"]
    assert starts() == ["a", "b", "a"]
    assert pool.swaps() == {"stop": 2}
    Sleepy.faults.clear()
    ask(pool, B)  # it is not tried again
    assert Sleepy.log[6:] == ["close a"]


@pytest.mark.parametrize("fault", ["wake fails", "wake hangs", "wake dies"])
def test_one_that_does_not_wake_is_started_again(make: Make, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    pool = make(24)
    ask(pool, A, B)
    Sleepy.faults.add(fault)
    if fault == "wake hangs":
        monkeypatch.setattr(sleepers, "_WAKE_LIMIT_S", 0.4)
    began = time.perf_counter()
    ask(pool, A)
    assert time.perf_counter() - began < 30
    assert starts() == ["a", "b", "a"]
    assert pool.state(A) == "ready"
    assert pool.swaps().get("wake", 0) == 0


def test_one_that_dies_in_its_sleep_is_forgotten(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)

    async def scenario() -> None:
        await dead_engine(pool, A)
        await until(lambda: pool.state(A) == "stopped")

    asyncio.run(scenario())
    assert not any(breaker._deaths for breaker in pool._residents._gate._breakers.values())
    ask(pool, A)
    assert starts() == ["a", "b", "a"]


def test_one_that_dies_in_its_sleep_and_is_asked_at_once_starts_again(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)

    async def scenario() -> str:
        await dead_engine(pool, A)
        return await answered(pool, A)

    assert asyncio.run(scenario()) == ANSWER
    assert starts() == ["a", "b", "a"]
    assert not any(breaker._deaths for breaker in pool._residents._gate._breakers.values())


def test_a_sleeper_without_room_to_wake_in_is_ended(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    pool._room.others = 14.0  # type: ignore[union-attr]

    async def alone() -> None:
        await pool.astop(B)
        with pytest.raises(OutOfMemoryError, match=r"needs 11\.0 GiB .* and 10\.0 GiB"):
            await answered(pool, A)

    asyncio.run(alone())
    assert Sleepy.log[-2:] == ["kill a", "close a"]
    assert "wake a" not in Sleepy.log


def test_memory_that_comes_back_late_does_not_cost_a_sleeper(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, close = make(24), Sleepy.close
    ask(pool, A, B)
    Sleepy.able = False  # so that b is stopped
    room: Any = pool._room

    async def late(engine: Sleepy) -> None:
        await close(engine)
        room.others = 18.0
        asyncio.get_running_loop().call_later(1.0, setattr, room, "others", 0.0)

    monkeypatch.setattr(Sleepy, "close", late)
    monkeypatch.setattr("chancellor.engines.swap._FREED_S", 10.0)
    ask(pool, A)
    assert Sleepy.log[-2:] == ["close b", "wake a"]
    assert starts() == ["a", "b"]


def test_too_little_host_memory_stops_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(24)
    monkeypatch.setattr(sleepers, "host_free", lambda: 18 * GIB - 1)  # twice the weights, and 2 GiB
    ask(pool, A, B)
    assert Sleepy.log == ["close a"]
    monkeypatch.setattr(sleepers, "host_free", lambda: 18 * GIB)
    ask(pool, A)
    assert Sleepy.log == ["close a", "sleep b"]


def test_sleepers_stay_below_their_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleepers, "settings", lambda: SimpleNamespace(sleep_gib=23.0))  # 8 kept, 16 wanted
    pool = make(24)
    ask(pool, A, B, C)
    assert Sleepy.log == ["sleep a", "close b"]


@pytest.mark.parametrize("why", ["the entry", "the engine", "its cost"])
def test_who_may_not_sleep_stops(make: Make, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    first = A
    if why == "the entry":
        first = A.model_copy(update={"engine": A.engine.model_copy(update={"sleep": False})})
    elif why == "the engine":
        Sleepy.able = False
    else:
        monkeypatch.setattr(sleepers, "_SLEEP_S", sleepers._STOP_S + 0.5)  # more than a stop and a start
    ask(make(24), first, B)
    assert Sleepy.log == ["close a"]


def test_what_a_sleeper_leaves_is_not_for_others(make: Make) -> None:
    pool = make(18.5)
    ask(pool, A, B)
    assert Sleepy.log == ["sleep a"]
    cache = FaultyEngine.starts[-1].engine.kv_cache_gib
    assert cache is not None
    assert 6 < cache <= 18.5 - 1.5 - 10
    assert resident(pool, A).takes == {"cuda:0": int(1.5 * GIB)}
    assert resident(pool, A).awake["cuda:0"] > 17 * GIB


def test_it_stops_where_its_rest_would_keep_the_newcomer_out(make: Make) -> None:
    pool = make(15)  # 14 is enough for one
    ask(pool, A, B)
    assert Sleepy.log == ["close a"]


def test_sleepers_are_stopped_where_their_rests_are_in_the_way(make: Make) -> None:
    pool = make(18)
    ask(pool, A, B, C)  # 14 and two rests fit
    assert Sleepy.log == ["sleep a", "sleep b"]
    ask(pool, ModelSpec(name="d", source="fake/d", trinity=97.0))  # three do not
    assert Sleepy.log == ["sleep a", "sleep b", "sleep c", "kill a", "close a"]
    assert pool.asleep() == {"b": True, "c": True, "d": False}
    assert pool.swaps() == {"sleep": 3, "stop": 1}


def test_a_sleeper_that_is_asked_while_it_has_to_go_answers_all_the_same(make: Make) -> None:
    pool = make(15.5)  # one beside a rest, and not beside two
    ask(pool, A, B)
    Sleepy.slow_s = 0.05

    async def scenario() -> list[str]:
        return list(await asyncio.gather(*(answered(pool, one) for one in (C, A, B, C, A))))

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [ANSWER] * 5
    assert "sleep a" in Sleepy.log


def test_a_close_kills_sleepers(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    pool.close()
    assert Sleepy.log == ["sleep a", "kill a", "close a", "close b"]
    assert Sleepy.used == {}


@pytest.mark.parametrize("moment", ["sleep a", "wake a"])
def test_a_close_while_one_falls_asleep_or_wakes(make: Make, moment: str) -> None:
    pool = make(24)
    ask(pool, A)

    async def scenario() -> None:
        if moment == "wake a":
            await answered(pool, B)
        Sleepy.held = moment
        asked = asyncio.create_task(answered(pool, B if moment == "sleep a" else A))
        await until(lambda: moment in Sleepy.log)
        await asyncio.to_thread(pool.close)
        (error,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(error, BaseException)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert not any(FaultyEngine.alive.values())
    assert "kill a" in Sleepy.log
    Sleepy.held = ""
    ask(pool, A)


def test_its_states(make: Make) -> None:
    pool = make(24)
    ask(pool, A)
    Sleepy.slow_s = 0.3

    async def scenario() -> list[str]:
        seen: list[str] = [pool.state(A)]
        done = False

        async def look() -> None:
            while not done:
                if (state := pool.state(A)) != seen[-1]:
                    seen.append(state)
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(look())
        assert await answered(pool, B) == ANSWER
        await asyncio.sleep(0.05)
        assert await answered(pool, A) == ANSWER
        await asyncio.sleep(0.05)
        done = True
        await watching
        return seen

    assert asyncio.run(scenario()) == ["ready", "stopping", "asleep", "waking", "ready"]


def test_nobody_is_lost_while_engines_fall_asleep_and_wake(make: Make) -> None:
    pool = make(24)
    Sleepy.slow_s = 0.1

    async def scenario() -> list[str]:
        async def one(number: int) -> str:
            await asyncio.sleep(number * 0.03)
            return await answered(pool, (A, B)[number % 2])

        return list(await asyncio.gather(*(one(number) for number in range(40))))

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == [ANSWER] * 40
    assert sorted(starts()) == ["a", "b"]


def test_who_wants_the_room_can_go_while_one_falls_asleep(make: Make) -> None:
    pool = make(24)
    ask(pool, A)
    Sleepy.held = "sleep a"  # on a busy machine the next lines take a while

    async def scenario() -> str:
        asked = asyncio.create_task(answered(pool, B))
        await until(lambda: "sleep a" in Sleepy.log)
        asked.cancel()
        await asyncio.wait({asked})  # else it may ask for B again
        await pool.astop(B)
        Sleepy.held = ""
        return await answered(pool, A)

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == ANSWER
    assert Sleepy.log == ["sleep a", "wake a"]
    assert starts() == ["a"]


def test_another_one_can_want_the_room_while_one_falls_asleep(make: Make) -> None:
    pool = make(24)
    ask(pool, A)
    Sleepy.held = "sleep a"

    async def scenario() -> str:
        asked = asyncio.create_task(answered(pool, B))
        await until(lambda: "sleep a" in Sleepy.log)
        assert pool._residents._swap._turn.locked()  # nothing starts while memory is measured
        asked.cancel()
        await asyncio.wait({asked})  # else it may ask for B again
        await pool.astop(B)
        Sleepy.held = ""
        return await answered(pool, C)

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == ANSWER
    # Whether a sleeps on beside c is a matter of what its sleep has cost, and so of this machine's pauses.
    assert Sleepy.log[0] == "sleep a"
    assert [name for name in starts() if name != "b"] == ["a", "c"]


def test_who_wants_the_room_can_go_while_it_is_decided_what_becomes_of_another(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(24)
    ask(pool, A)
    looks: list[float] = []
    gone = threading.Event()

    def slowly() -> int:
        looks.append(time.monotonic())
        gone.wait(30)
        return 100 * GIB

    monkeypatch.setattr(sleepers, "host_free", slowly)

    async def scenario() -> str:
        asked = asyncio.create_task(answered(pool, B))
        await until(lambda: looks)
        asked.cancel()
        await asyncio.wait({asked})  # else it may ask for B again
        await pool.astop(B)
        gone.set()
        return await answered(pool, A)

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == ANSWER
    assert starts() == ["a"]


def test_a_wake_goes_on_when_its_caller_has_gone(make: Make) -> None:
    pool = make(24)
    ask(pool, A, B)
    Sleepy.slow_s = 0.1

    async def scenario() -> None:
        asked = asyncio.create_task(answered(pool, A))
        await until(lambda: "wake a" in Sleepy.log)
        asked.cancel()
        await until(lambda: pool.state(A) == "ready")

    asyncio.run(scenario())
    assert starts() == ["a", "b"]


def test_the_watch_judges_no_sleeper(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(24)
    ask(pool, A, B)
    monkeypatch.setattr(Sleepy, "stalled", lambda self: "it does nothing" if self.spec.name == "a" else None)

    async def looks() -> None:
        await asyncio.sleep(2.2)

    asyncio.run(looks())
    assert pool.state(A) == "asleep"
    ask(pool, A)
    assert "kill a" not in Sleepy.log


def test_its_metrics(make: Make) -> None:
    pool = make(24)
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        ask(pool, A, B, A)
        lines = generate_latest(registry).decode().splitlines()
    shown = {line for line in lines if line.startswith(("chancellor_engine_asleep{", "chancellor_engine_swaps_total{"))}
    assert shown == {
        'chancellor_engine_asleep{model="a"} 0.0',
        'chancellor_engine_asleep{model="b"} 1.0',
        'chancellor_engine_swaps_total{kind="sleep"} 2.0',
        'chancellor_engine_swaps_total{kind="wake"} 1.0',
    }


def test_a_replica_whose_engines_all_sleep_is_well(make: Make) -> None:
    from chancellor import Catalog
    from chancellor.server.ray_health import Health

    pool: Any = make(24)
    now = [0.0]
    readiness: Any = SimpleNamespace(error=None, started={"a": 1.0})
    health = Health(Catalog([A, B]), Any, pool, readiness, clock=lambda: now[0])  # type: ignore[arg-type]
    ask(pool, A, B)

    async def scenario() -> None:
        await pool.astop(B)
        for at in (0, 1000):
            now[0] = float(at)
            await health.check()

    asyncio.run(scenario())
    assert starts() == ["a", "b"]
    assert pool.state(A) == "asleep"
