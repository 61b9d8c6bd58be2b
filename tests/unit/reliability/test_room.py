import asyncio
import time
from typing import ClassVar

import pytest

from chancellor.engines import EnginePool
from chancellor.errors import (
    OutOfMemoryError,
)
from chancellor.memory import Device
from tests.faulty import ANSWER, A, B, Desk, FaultyEngine, answered, request, text_of, until, whole


def test_two_that_fit_only_one_at_a_time_take_turns(narrow: EnginePool) -> None:
    for number in range(10):
        model = (A, B)[number % 2]
        deltas = list(narrow.generate(model, request()))
        assert (whole(deltas), deltas[-1].model) == (ANSWER, model.name)
    assert FaultyEngine.most == 1
    assert len(FaultyEngine.starts) == 10


def test_who_asks_at_once_is_served_in_groups(narrow: EnginePool) -> None:
    async def one(number: int) -> str | None:
        model = (A, B)[number % 2]
        deltas = [delta async for delta in narrow.agenerate(model, request())]
        assert whole(deltas) == ANSWER
        return deltas[-1].model

    async def forty() -> list[str | None]:
        return list(await asyncio.gather(*(one(number) for number in range(40))))

    assert asyncio.run(forty()) == ["a", "b"] * 20
    assert FaultyEngine.most == 1
    assert len(FaultyEngine.starts) <= 4


def test_a_steady_stream_for_one_does_not_keep_the_other_out(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.01

    async def forever(stop: asyncio.Event) -> int:
        answered = 0
        while not stop.is_set():
            answered += whole([delta async for delta in narrow.agenerate(A, request())]) == ANSWER
        return answered

    async def scenario() -> tuple[float, list[int]]:
        stop = asyncio.Event()
        steady = [asyncio.create_task(forever(stop)) for _ in range(4)]
        await asyncio.sleep(0.3)
        began = time.perf_counter()
        assert whole([delta async for delta in narrow.agenerate(B, request())]) == ANSWER
        waited = time.perf_counter() - began
        stop.set()
        return waited, await asyncio.gather(*steady)

    waited, answered = asyncio.run(scenario())
    assert waited < 20
    assert all(answered)


def test_engines_that_fit_are_kept(pool: EnginePool) -> None:
    roomy = EnginePool(FaultyEngine, room=Desk(6))
    for _ in range(3):
        for model in (A, B):
            list(roomy.generate(model, request()))
    assert len(FaultyEngine.starts) == 2
    roomy.close()


def test_what_never_fits_says_so_and_stops_nobody(pool: EnginePool) -> None:
    tight = EnginePool(FaultyEngine, room=Desk(1))
    with pytest.raises(OutOfMemoryError, match=r"needs .* GiB on cpu for one context of 4,096 tokens"):
        list(tight.generate(A, request()))
    assert FaultyEngine.starts == []


class Slowly(FaultyEngine):
    """Its memory is taken until its close is over."""

    closes_s: ClassVar[float] = 0.3
    held: ClassVar[int] = 0
    closed = False

    async def start(self) -> None:
        await super().start()
        Slowly.held += 3

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.kill()
        await asyncio.sleep(self.closes_s)
        Slowly.held -= 3


def test_who_makes_room_waits_for_a_close_that_is_under_way() -> None:
    class Held(Desk):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._read = lambda: [Device("cpu", self.size, self.size - Slowly.held, self.size)]  # type: ignore[method-assign]

    FaultyEngine.reset()
    Slowly.held = 0
    pool = EnginePool(Slowly, room=Held(3))

    async def scenario() -> list[str]:
        assert await answered(pool, A) == ANSWER
        pool._residents.ready()[0].task.result().kill()
        return list(await asyncio.gather(answered(pool, A), answered(pool, B)))

    assert asyncio.run(scenario()) == [ANSWER, ANSWER]
    pool.close()
    assert Slowly.held == 0


def test_an_orderly_close_is_no_death() -> None:
    FaultyEngine.reset()
    pool = EnginePool(Slowly)

    async def scenario() -> None:
        for _ in range(6):
            assert await answered(pool, A) == ANSWER
            stop = asyncio.create_task(pool.astop(A))
            await asyncio.sleep(0.05)
            assert await answered(pool, A) == ANSWER
            await stop

    asyncio.run(scenario())
    assert not any(breaker._deaths or breaker.error for breaker in pool._residents._gate._breakers.values())
    pool.close()


def test_who_waits_for_room_can_be_stopped_and_nobody_is_sent_away_for_it(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> tuple[bool, list[str]]:
        busy = asyncio.create_task(answered(narrow, A, max_tokens=160))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(narrow.astart(B))
        await until(lambda: any(one.leaving for one in narrow._residents._all.values()))
        later = asyncio.create_task(answered(narrow, A))  # it waits for the next start of its model
        await asyncio.sleep(0.1)
        wants_room.cancel()
        await narrow.astop(B)
        return busy.done(), list(await asyncio.gather(busy, later))

    waited, texts = asyncio.run(scenario())
    assert not waited
    assert texts == [text_of(range(3, 163)), ANSWER]
    assert [spec.name for spec in FaultyEngine.starts] == ["a"]


def test_an_engine_that_somebody_takes_in_hand_makes_no_room(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> None:
        busy = asyncio.create_task(answered(narrow, A, max_tokens=40))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(narrow.astart(B))
        await asyncio.sleep(0.1)
        engine = await narrow.aengine(A)
        with pytest.raises(OutOfMemoryError):
            await wants_room
        assert engine.healthy()
        assert await busy == text_of(range(3, 43))

    asyncio.run(scenario())


def test_a_dead_engine_makes_room_first() -> None:
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Desk(6))
    for model in (A, B):
        list(pool.generate(model, request()))
    pool._residents.ready()[1].task.result().kill()
    list(pool.generate(B.model_copy(update={"source": "fake/c"}), request()))
    list(pool.generate(A, request()))
    assert [spec.source for spec in FaultyEngine.starts] == ["fake/a", "fake/b", "fake/c"]
    pool.close()


def test_an_engine_that_cannot_be_measured_runs_all_the_same() -> None:
    class Blind(Desk):
        def took(self, *_: object) -> None:
            raise RuntimeError("The driver is gone.")

    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Blind(3))
    assert whole(list(pool.generate(A, request()))) == ANSWER
    assert whole(list(pool.generate(B, request()))) == ANSWER
    assert FaultyEngine.most == 1
    pool.close()
    assert not any(FaultyEngine.alive.values())
