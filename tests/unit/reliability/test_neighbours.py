"""Several pools in one process: they have one budget."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from chancellor.catalog import ModelSpec
from chancellor.engines import EnginePool
from chancellor.engines.neighbours import PROCESS, Neighbours
from chancellor.engines.resident import Resident
from chancellor.engines.room import Fit, Room
from chancellor.errors import ChancellorError, OutOfMemoryError
from chancellor.memory import Device, Estimate
from tests.entries import GIB
from tests.faulty import ANSWER, A, B, FaultyEngine, request, whole
from tests.sleepy import C

SIZE, BUDGET = 100, 80
FIXED = 3
"""GiB that an engine takes besides its KV cache."""


class Measured(FaultyEngine):
    """Takes memory."""

    used: ClassVar[dict[int, float]] = {}
    """GiB by engine."""
    peak: ClassVar[float] = 0.0

    async def start(self) -> None:
        await super().start()
        self.used[id(self)] = FIXED + (self.spec.engine.kv_cache_gib or 0)
        Measured.peak = max(Measured.peak, sum(self.used.values()))

    def kill(self) -> None:
        super().kill()
        self.used.pop(id(self), None)


class House(Room):
    """A GPU that several pools are on."""

    def __init__(self, neighbours: Neighbours | None, wants: int = 60) -> None:
        self.neighbours, self.wants = neighbours, wants
        self.looked: Callable[[], object] = int

    def expected(self, spec: ModelSpec) -> Estimate:
        parts = {"weights": 10 if spec is C else 1, "kv_cache": self.wants, "kv_cache_least": 1}
        sizes = {name: size * GIB for name, size in parts.items()}
        return Estimate(("cuda:0",), **sizes, activations=GIB, graphs=0, overhead=GIB)

    def _read(self) -> list[Device]:
        free = SIZE - sum(tuple(Measured.used.values()))
        return [Device("cuda:0", SIZE * GIB, int(free * GIB), BUDGET * GIB)]

    def fit(self, *given: object) -> Fit:
        found = super().fit(*given)  # type: ignore[arg-type]
        self.looked()
        return found

    def took(self, *_: object) -> None:
        return None


Make = Callable[..., EnginePool]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    FaultyEngine.reset()
    Measured.used.clear()
    Measured.peak = 0.0
    monkeypatch.setattr("chancellor.engines.swap._PATIENCE_S", (0.01, 0.05))
    monkeypatch.setattr("chancellor.engines.swap._FREED_S", 0.1)
    monkeypatch.setattr("chancellor.engines.swap._LOOK_EVERY_S", 0.01)
    neighbours, pools = Neighbours(), []

    def made(**options: int) -> EnginePool:
        pools.append(EnginePool(Measured, room=House(neighbours, **options)))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close()
    assert not any(FaultyEngine.alive.values())
    FaultyEngine.reset()


def ask(pool: EnginePool, model: ModelSpec) -> None:
    assert whole(list(pool.generate(model, request()))) == ANSWER


def test_two_pools_stay_within_one_budget(make: Make) -> None:
    one, other = make(), make()
    ask(one, A)
    ask(other, B)
    assert sum(Measured.used.values()) <= BUDGET
    assert FaultyEngine.starts[1].engine.kv_cache_gib == pytest.approx(BUDGET - 60 - 2 * FIXED, abs=0.01)


def test_what_changes_hands_is_taken_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(wants=50), make(wants=1)
    ask(one, A)
    ask(other, C)
    swap, seen = one._residents._swap, []
    end = swap._end

    async def ending(victim: Resident) -> None:
        seen.append(other._residents._swap._neighbours.taken(other._residents._swap)["cuda:0"])  # type: ignore[union-attr]
        await end(victim)

    monkeypatch.setattr(swap, "_end", ending)
    ask(one, B)
    assert seen == [(50 + FIXED) * GIB]


def test_what_does_not_fit_beside_a_neighbour_is_refused_and_nobody_stops_for_it(make: Make) -> None:
    one, other = make(wants=70), make(wants=1)
    ask(one, A)
    ask(other, B)  # 4 GiB of the 7 that are left
    with pytest.raises(OutOfMemoryError, match=r"needs 13\.0 GiB .* and 3\.0 GiB of the budget are left"):
        ask(other, C)
    assert other.state(B) == "ready"
    one.close()
    ask(other, C)
    assert sorted(name for name, count in FaultyEngine.alive.items() if count) == ["b", "c"]


def test_two_that_start_at_once_do_not_both_take_the_same(make: Make) -> None:
    pools, looks = [make(), make()], []
    both = threading.Barrier(2, action=lambda: looks.append(1))

    def looked() -> None:  # whether it ever fits, and whether it does now: each before the other one goes on
        if len(looks) < 2:
            both.wait(60)

    for pool in pools:
        pool._room.looked = looked  # type: ignore[union-attr]
    with ThreadPoolExecutor(2) as threads:
        for one in [threads.submit(ask, *each) for each in zip(pools, (A, B), strict=True)]:
            one.result()
    assert len(FaultyEngine.starts) == 2
    assert Measured.peak <= BUDGET


def test_a_pool_that_is_gone_counts_no_more(make: Make) -> None:
    neighbours = Neighbours()

    class Gone:
        def taken(self) -> Counter[str]:
            return Counter({"cuda:0": 7})

    gone, here = Gone(), Gone()
    for pool in (gone, here):
        neighbours.join(pool)
    assert neighbours.taken(here) == {"cuda:0": 7}
    del gone, pool
    gc.collect()
    assert neighbours.taken(Gone()) == {"cuda:0": 7}
    assert neighbours.taken(here) == Counter()


def test_only_real_devices_are_shared_with_the_whole_process() -> None:
    assert Room().neighbours is PROCESS
    assert Room(read=list).neighbours is None
    assert EnginePool(FaultyEngine)._room is None
    pool = EnginePool()
    assert pool._residents._swap in PROCESS._pools


def test_a_forked_child_has_no_neighbours() -> None:
    pool = EnginePool()
    parents = list(PROCESS._pools)
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        with PROCESS._lock:
            taken.set()
            go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(60)
    if (child := os.fork()) == 0:
        free = PROCESS._lock.acquire(timeout=5)
        own = pool._residents._swap in PROCESS._pools  # the child's copy of the pool may start engines
        os._exit(0 if free and own and not any(one in PROCESS._pools for one in parents) else 1)
    go.set()
    holder.join()
    ended, ends = (0, 0), time.monotonic() + 60
    while not ended[0] and time.monotonic() < ends:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended[0]:  # it waits for the lock for ever
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_a_start_that_fails_takes_nothing(make: Make) -> None:
    one, other = make(), make()
    errors: list[ChancellorError] = [OutOfMemoryError("No.")]
    FaultyEngine.plan.start_errors = {"a/vllm/int8": errors}
    with pytest.raises(OutOfMemoryError):
        ask(one, A)
    ask(other, B)
    assert FaultyEngine.starts[-1].engine.kv_cache_gib == 60


def test_a_start_that_is_under_way_counts(make: Make) -> None:
    one, other = make(), make()
    FaultyEngine.plan.start_s = 1.0

    async def both() -> None:
        first = asyncio.create_task(one.astart(A))
        while not FaultyEngine.starts:  # noqa: ASYNC110 - it is filled in another thread
            await asyncio.sleep(0.01)
        await other.astart(B)
        await first

    asyncio.run(both())
    assert Measured.peak <= BUDGET
