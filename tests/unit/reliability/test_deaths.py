import asyncio
import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide
from chancellor.engines.migration import Migration
from chancellor.errors import (
    ChancellorError,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
)
from tests.faulty import ANSWER, WAYS, A, B, Desk, FaultyEngine, Plan, answered, fail, request, text_of, until, whole


@pytest.mark.parametrize("died_after", range(10))
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_goes_on_where_its_engine_died(pool: EnginePool, died_after: int, *, stream: bool) -> None:
    deltas = fail(pool, Plan(deaths=[died_after]), request(stream=stream))
    assert whole(deltas) == ANSWER
    assert [token for delta in deltas for token in delta.token_ids] == list(range(3, 13))
    assert (deltas[-1].input_tokens, deltas[-1].output_tokens) == (3, 10)
    (step,) = deltas[-1].fallbacks
    assert (step["step"], step["cause"], step["from"]) == ("restart", "died", step["to"])
    assert len(FaultyEngine.starts) == 2
    # what had come is not made again
    again = FaultyEngine.requests[1]
    assert again.answered == (tuple(range(3, 3 + died_after)) if stream else ())


@pytest.mark.parametrize("died_after", [0, 4, 9])
def test_a_guided_answer_is_made_again_and_nothing_comes_twice(pool: EnginePool, died_after: int) -> None:
    deltas = fail(pool, Plan(deaths=[died_after]), request(guide=Guide("regex", ".*"), temperature=0.9))
    assert whole(deltas) == ANSWER
    assert [token for delta in deltas for token in delta.token_ids] == list(range(3, 13))
    first, second = FaultyEngine.requests
    assert second.answered == ()
    assert first.seed == second.seed
    assert first.seed is not None


def test_after_two_deaths_a_request_ends_with_its_text(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[3, 5]))
    deltas: list[Delta] = []
    with pytest.raises(EngineDiedError, match=r"died 2 times.*5 tokens") as caught:
        deltas += pool.generate(A, request(), WAYS)
    assert caught.value.partial == text_of(range(3, 8))


def test_an_answer_that_has_begun_keeps_its_model(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[3]))
    pool.start(A)
    errors: list[ChancellorError] = [EngineStartError("No more.") for _ in range(5)]
    FaultyEngine.plan.start_errors = {"a/vllm/int8": errors}
    with pytest.raises(EngineDiedError, match="did not start again: No more") as caught:
        list(pool.generate(A, request(), WAYS))
    assert caught.value.partial == text_of(range(3, 6))
    assert {spec.name for spec in FaultyEngine.starts} == {"a"}


def test_who_leaves_during_a_restart_does_not_use_the_engine_for_ever() -> None:
    left = threading.Event()

    class Slow(Desk):
        def free_mib(self, names: object = ()) -> float:
            if len(FaultyEngine.starts) == 2:
                left.wait(30)
            return 1.0

    FaultyEngine.reset(Plan(deaths=[0]))
    pool = EnginePool(FaultyEngine, room=Slow(3))

    async def scenario() -> None:
        task = asyncio.create_task(answered(pool, A))
        await until(lambda: len(FaultyEngine.starts) == 2 and any(one.users for one in pool._residents.ready()))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        left.set()
        await until(lambda: all(one.users == 0 and one.idle.is_set() for one in pool._residents.ready()))

    asyncio.run(scenario())
    pool.close()


def test_errors_keep_what_they_carry() -> None:
    died, busy = EngineDiedError("x", hint="y"), EngineBusyError("z")
    died.partial, busy.retry_after_s = "the cat", 7.0
    assert pickle.loads(pickle.dumps(died)).partial == "the cat"
    assert pickle.loads(pickle.dumps(busy)).retry_after_s == 7.0


def test_a_request_whose_thoughts_are_parsed_is_replayed_with_a_seed(pool: EnginePool) -> None:
    thinking = B.model_copy(update={"engine": B.engine.model_copy(update={"reasoning_parser": "qwen3"})})
    FaultyEngine.reset(Plan(deaths=[4]))
    assert whole(list(pool.generate(thinking, request()))) == ANSWER
    first, second = FaultyEngine.requests
    assert second.answered == ()
    assert first.seed == second.seed
    assert first.seed is not None


def test_a_replay_that_ends_before_what_had_come_is_an_error() -> None:
    class Shorter(FaultyEngine):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
            if FaultyEngine.requests:
                request = replace(request, max_tokens=3)
            async for delta in super().generate(request):
                yield delta

    FaultyEngine.reset(Plan(deaths=[6]))
    pool = EnginePool(Shorter)
    with pytest.raises(EngineDiedError, match="shorter"):
        list(pool.generate(A, request(guide=Guide("regex", ".*"))))
    pool.close()


def test_a_death_after_the_last_delta_changes_nothing() -> None:
    class Late(FaultyEngine):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
            async for delta in super().generate(request):
                yield delta
            self.kill()
            raise EngineDiedError("It died when all was said.")

    FaultyEngine.reset()
    pool = EnginePool(Late)
    assert whole(list(pool.generate(A, request()))) == ANSWER
    assert len(FaultyEngine.starts) == 1
    pool.close()


def test_text_without_tokens_is_not_made_twice() -> None:
    migration = Migration(request())
    engine = FaultyEngine(A)
    migration.request(engine)
    assert [delta.text for delta in migration.take(Delta("the cat"))] == ["the cat"]
    assert migration.emitted
    assert migration.goes_on()
    migration.request(engine)
    assert [delta.text for delta in migration.take(Delta("the cat sat"))] == [" sat"]
    assert Migration(request()).ended(EngineDiedError("x")).partial == ""
    closed = Migration(request())
    list(closed.take(Delta("the", (1,))))
    assert closed.ended(EngineDiedError("x")).partial == "the"


def test_an_answer_with_penalties_is_made_once_more_from_its_beginning() -> None:
    for more, again in ({"frequency_penalty": 0.5}, True), ({"presence_penalty": -1.0}, True), ({}, False):
        migration = Migration(replace(request(), **more))  # type: ignore[arg-type]
        migration.request(FaultyEngine(A))
        list(migration.take(Delta("the cat", (1, 2))))
        assert migration.goes_on()
        assert (migration.request(FaultyEngine(A)).answered == ()) == again
