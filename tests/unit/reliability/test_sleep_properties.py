"""Whatever the order, the memory, and what goes wrong: all are answered, and nothing is left."""

import asyncio
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chancellor.engines import EnginePool, sleepers
from tests.entries import GIB
from tests.faulty import ANSWER, A, B, FaultyEngine, answered
from tests.sleepy import C, Hall, Sleepy

MODELS = (A, B, C)


def bench(name: str) -> Any:
    """Import a program of the folder bench, which is no package."""
    found: Any = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def quick(patch: pytest.MonkeyPatch) -> None:
    for name, value in {"_SLEEP_S": 0.01, "_SLEEP_LIMIT_S": 0.1, "_WAKE_LIMIT_S": 0.1, "_FREED_S": 0.05}.items():
        patch.setattr(sleepers, name, value)
    patch.setattr(sleepers, "host_free", lambda: 100 * GIB)
    patch.setattr("chancellor.engines.swap._FREED_S", 0.05)
    patch.setattr("chancellor.engines.swap._LOOK_EVERY_S", 0.01)
    patch.setattr("chancellor.engines.swap._PATIENCE_S", (0.01, 0.1))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.integers(11, 40),
    rest=st.sampled_from([0.5, 1.5, 3.0]),
    faults=st.sets(
        st.sampled_from(
            ["sleep fails", "sleep dies", "sleep keeps", "wake fails", "wake hangs", "wake dies", "answer"]
        ),
        max_size=1,
    ),
    order=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20),
)
def test_all_are_answered_and_memory_holds(
    size: int, rest: float, faults: set[str], order: list[tuple[int, int]]
) -> None:
    Sleepy.fresh()
    Sleepy.rest, Sleepy.slow_s = rest, 0.002
    Sleepy.faults.update(faults)

    async def one(number: int, delay: int) -> str:
        await asyncio.sleep(delay / 200)
        return await answered(pool, MODELS[number])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(*each) for each in order))

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        pool = EnginePool(Sleepy, room=Hall(size))
        try:
            assert asyncio.run(asyncio.wait_for(all_of_them(), 60)) == [ANSWER] * len(order)
        finally:
            pool.close()
    assert +FaultyEngine.alive == Counter()
    assert Sleepy.used == {}
    assert Sleepy.wrong == []


@pytest.mark.parametrize("sleeps", [True, False])
def test_the_benchmark_of_turns(monkeypatch: pytest.MonkeyPatch, sleeps: bool) -> None:
    Sleepy.fresh()
    quick(monkeypatch)
    for limit in ("_SLEEP_LIMIT_S", "_WAKE_LIMIT_S", "_FREED_S"):  # nothing hangs here, but this machine may
        monkeypatch.setattr(sleepers, limit, 60.0)
    swap = bench("swap")
    hall = Hall(24)
    monkeypatch.setattr(swap, "devices", hall._read)
    specs = [swap.configured(one, sleeps=sleeps, kv_cache_gib=8) for one in (A, B)]
    pool = EnginePool(Sleepy, room=hall)
    turns = [swap.ask(pool, specs, number) for number in range(6)]
    found = swap.summary(turns, pool.swaps())
    pool.close()
    needs = ["start", "start", *["wake" if sleeps else "start"] * 4]
    assert [turn.needed for turn in turns] == needs
    assert found["turns"] == Counter(needs)
    assert turns[-1].others == {"a": "asleep" if sleeps else "stopped"}
    assert found["swaps"] == ({"sleep": 5, "wake": 4} if sleeps else {"stop": 5})
    assert found["texts_equal"] == {"a": True, "b": True}
    assert found["grown_gib"] == 0
    again = swap.summary([*turns, turns[-1]._replace(text="x", free_gib=turns[-1].free_gib - 0.5)], {})
    assert again["texts_equal"] == {"a": True, "b": False}
    assert again["grown_gib"] == 0.5
