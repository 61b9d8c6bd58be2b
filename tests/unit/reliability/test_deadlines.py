import asyncio

import pytest

from chancellor.engines import EnginePool
from chancellor.errors import (
    GenerationTimeoutError,
)
from tests.faulty import ANSWER, A, B, FaultyEngine, Plan, answered, request, until


def test_a_deadline_counts_over_restarts(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[2], token_s=0.02))
    with pytest.raises(GenerationTimeoutError):
        list(pool.generate(A, request(timeout_s=3.0, max_tokens=1000)))
    assert len(FaultyEngine.starts) == 2


def test_a_deadline_does_not_wait_for_a_restart(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[2]))
    pool.start(A)
    FaultyEngine.plan.start_s = 5.0
    with pytest.raises(GenerationTimeoutError):
        list(pool.generate(A, request(timeout_s=2.0)))
    assert not FaultyEngine.alive["a"]  # it starts still


def test_a_deadline_counts_while_the_engine_starts_and_the_start_goes_on(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(start_s=0.5))

    async def scenario() -> None:
        with pytest.raises(GenerationTimeoutError, match=r"after 0\.1 s. Its engine was not ready yet"):
            await answered(pool, A, timeout_s=0.1)
        assert await answered(pool, A) == ANSWER

    asyncio.run(scenario())
    assert len(FaultyEngine.starts) == 1


def test_a_deadline_counts_while_another_makes_room(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> None:
        busy = asyncio.create_task(answered(narrow, A, max_tokens=60))
        await until(lambda: FaultyEngine.requests)
        with pytest.raises(GenerationTimeoutError):
            await answered(narrow, B, timeout_s=0.1)
        assert not busy.done()
        await busy

    asyncio.run(scenario())
    assert all(one.users == 0 for one in narrow._residents._all.values())


def test_who_waits_for_the_next_start_of_an_engine_that_makes_room_has_a_deadline(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> None:
        busy = asyncio.create_task(answered(narrow, A, max_tokens=100))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(answered(narrow, B))
        await until(lambda: any(one.leaving for one in narrow._residents._all.values()))
        with pytest.raises(GenerationTimeoutError):
            await answered(narrow, A, timeout_s=0.1)
        assert not busy.done()
        await busy
        assert await wants_room == ANSWER

    asyncio.run(scenario())
