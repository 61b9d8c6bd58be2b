"""Engines that have to go while they answer: what takes too long is cut, once, and goes on in its model's next turn."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import pytest

from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide, swap
from chancellor.engines.migration import Migration
from chancellor.engines.resident import Resident, key_of
from chancellor.errors import EngineDiedError, EngineStartError
from tests.faulty import A, B, Desk, FaultyEngine, Plan, request, text_of, until, whole
from tests.sleepy import C, dead_engine, resident

LONG = 20
"""Tokens of an answer."""
NEVER = 10**9


class Endless(FaultyEngine):
    """A model's first engine stands still in the middle of each answer: only its end brings that forward."""

    closed: ClassVar[bool] = False
    """Whether a model's first start waits."""
    stays: ClassVar[Callable[[GenerationRequest, int], bool]]
    """Whether this request stands still on this engine of its model, counted from 1."""

    async def start(self) -> None:
        await super().start()
        self.number = [spec.name for spec in self.starts].count(self.spec.name)
        while Endless.closed and self.number == 1:  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.005)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        stays = Endless.stays(request, self.number)
        first = replace(request, max_tokens=max(LONG // 2, len(request.answered) + 1)) if stays else request
        async for delta in super().generate(first):
            if not stays or delta.finish_reason is None:
                yield delta
        while stays:
            if not self._alive:
                raise EngineDiedError("The faulty engine died.")
            await asyncio.sleep(0.005)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnginePool]:
    """Room for one, who has to go soon."""
    monkeypatch.setattr(swap, "_PATIENCE_S", (0.01, 0.05))
    monkeypatch.setattr(swap, "_DRAIN_S", 0.1)
    monkeypatch.setattr(swap, "_LOOK_EVERY_S", 0.02)
    FaultyEngine.reset(Plan(token_s=0.03))
    Endless.closed, Endless.stays = False, lambda _, number: number == 1
    pool = EnginePool(Endless, room=Desk(3))
    yield pool
    Endless.closed = False
    pool.close()
    FaultyEngine.reset()


async def deltas_of(pool: EnginePool, model: ModelSpec, **options: object) -> list[Delta]:
    asked = request(**{"max_tokens": LONG, **options})  # type: ignore[arg-type]
    return [delta async for delta in pool.agenerate(model, asked)]


def steps(deltas: list[Delta]) -> list[tuple[str, str]]:
    return [(step["step"], step["cause"]) for step in deltas[-1].fallbacks]


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_two_long_answers_are_each_cut_once(hasty: EnginePool, retries: int, *, stream: bool) -> None:
    async def both() -> list[list[Delta]]:
        first = asyncio.create_task(deltas_of(hasty, A, retries=retries, stream=stream))
        await until(lambda: FaultyEngine.requests)
        return list(await asyncio.gather(first, deltas_of(hasty, B, retries=retries, stream=stream)))

    for model, deltas in zip((A, B), asyncio.run(asyncio.wait_for(both(), 120)), strict=True):
        assert whole(deltas) == text_of(range(3, 3 + LONG))
        assert [token for delta in deltas for token in delta.token_ids] == list(range(3, 3 + LONG))
        assert deltas[-1].model == model.name
        assert steps(deltas) == [("restart", "swap")]
    assert [spec.name for spec in FaultyEngine.starts] == ["a", "b", "a", "b"]
    assert FaultyEngine.most == 1
    breakers = hasty._residents._gate._breakers.values()
    assert not any(breaker._deaths or breaker.error for breaker in breakers)


def test_what_was_not_cut_yet_is_cut_beside_what_was(hasty: EnginePool) -> None:
    Endless.stays = lambda asked, number: number == 1 or (number == 2 and asked.max_tokens > LONG)

    async def three() -> list[list[Delta]]:
        first = asyncio.create_task(deltas_of(hasty, A))
        await until(lambda: FaultyEngine.requests)
        Endless.closed = True
        other = asyncio.create_task(deltas_of(hasty, B))
        await until(lambda: len(FaultyEngine.starts) == 2)
        late = asyncio.create_task(deltas_of(hasty, A, max_tokens=2 * LONG))
        await until(lambda: hasty._residents._queued[key_of(A)] == 2)
        Endless.closed = False
        return list(await asyncio.gather(first, other, late))

    first, other, late = asyncio.run(asyncio.wait_for(three(), 120))
    assert (steps(first), steps(other), steps(late)) == ([("restart", "swap")],) * 3
    assert whole(first) == whole(other) == text_of(range(3, 3 + LONG))
    assert whole(late) == text_of(range(3, 3 + 2 * LONG))


def test_who_answers_in_time_is_not_cut(hasty: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_DRAIN_S", 600.0)
    Endless.stays = lambda *_: False

    async def both() -> list[list[Delta]]:
        first = asyncio.create_task(deltas_of(hasty, A, retries=0))
        await until(lambda: FaultyEngine.requests)
        return list(await asyncio.gather(first, deltas_of(hasty, B, max_tokens=1)))

    assert [steps(deltas) for deltas in asyncio.run(asyncio.wait_for(both(), 120))] == [[], []]


def test_a_death_while_it_makes_room_is_one(hasty: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_DRAIN_S", 600.0)
    Endless.stays = lambda asked, number: number == 1 and asked.max_tokens == LONG

    async def both() -> list[list[Delta]]:
        first = asyncio.create_task(deltas_of(hasty, A))
        await until(lambda: FaultyEngine.requests)
        other = asyncio.create_task(deltas_of(hasty, B, max_tokens=1))
        await until(lambda: resident(hasty, A).leaving)
        await dead_engine(hasty, A)
        return list(await asyncio.gather(first, other))

    first, _ = asyncio.run(asyncio.wait_for(both(), 120))
    assert steps(first) == [("restart", "died")]


def test_a_death_after_a_cut_is_the_first(hasty: EnginePool) -> None:
    FaultyEngine.plan.deaths += [NEVER, NEVER, LONG // 2 + 3]  # of the one that a goes on with

    async def both() -> list[list[Delta]]:
        first = asyncio.create_task(deltas_of(hasty, A, retries=1))
        await until(lambda: FaultyEngine.requests)
        return list(await asyncio.gather(first, deltas_of(hasty, B)))

    first, _ = asyncio.run(asyncio.wait_for(both(), 120))
    assert steps(first) == [("restart", "swap"), ("restart", "died")]
    assert whole(first) == text_of(range(3, 3 + LONG))


def test_who_has_to_be_waited_for_goes_after_who_is_only_busy(hasty: EnginePool) -> None:
    turns, loop = hasty._residents._swap, asyncio.new_event_loop()
    waited, busy, idle, newcomer = (Resident(spec, spec.name) for spec in (A, B, C, C))
    for used, one in enumerate((waited, busy, idle)):
        one.engine, one.takes, one.used = FaultyEngine(one.spec), {"cpu": 1}, used
        one.task = loop.create_future()  # type: ignore[assignment]
    waited.spared.add(object())
    waited.users = busy.users = 1
    order = []
    for _ in range(3):
        turns._residents = {one.key: one for one in (waited, busy, idle) if one not in order}
        order.append(turns._least_recent(("cpu",), newcomer))
    loop.close()
    assert order == [idle, busy, waited]


def test_who_was_cut_and_has_gone_keeps_nobody_waiting(hasty: EnginePool) -> None:
    Endless.stays = lambda asked, number: number == 1 or asked.max_tokens > LONG

    def spared() -> bool:
        one = hasty._residents._all.get(key_of(A))
        return one is not None and bool(one.spared) and one.leaving

    async def scenario() -> list[Delta]:
        first = asyncio.create_task(deltas_of(hasty, A, max_tokens=2 * LONG))
        await until(lambda: FaultyEngine.requests)
        other = asyncio.create_task(deltas_of(hasty, B))
        await until(spared)
        first.cancel()
        return await other

    assert whole(asyncio.run(asyncio.wait_for(scenario(), 120))) == text_of(range(3, 3 + LONG))


def test_a_cut_is_no_death_and_says_so() -> None:
    migration = Migration(request(retries=0))
    migration.request(FaultyEngine(A))
    list(migration.take(Delta("the", (1,))))
    for _ in range(2):
        assert migration.goes_on(cut=True)
    assert migration.deaths == 0
    (last,) = migration.take(Delta(" cat", (2,), finish_reason="stop", inference_time_s=math.inf))
    assert last.inference_time_s is not None
    assert last.inference_time_s < math.inf  # of both engines, and not of the last one alone
    assert "made room for another, and did not start again: No." in str(migration.stranded(EngineStartError("No.")))
    assert not migration.goes_on()
    assert "died once under this request" in str(migration.ended(EngineDiedError("x")))


def test_a_guided_answer_can_be_cut_whatever_its_retries() -> None:
    asked = replace(request(retries=0, temperature=0.9), guide=Guide("regex", ".*"))
    migration = Migration(asked)
    seed = migration.request(FaultyEngine(A)).seed
    assert seed is not None
    list(migration.take(Delta("the", (1,))))
    assert migration.request(FaultyEngine(A)).seed == seed
