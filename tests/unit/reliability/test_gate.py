import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor import ModelSpec
from chancellor.catalog import EngineOptions
from chancellor.engines import EnginePool
from chancellor.engines.breaker import Breaker
from chancellor.engines.descent import Descent
from chancellor.engines.gate import Gate
from chancellor.engines.resident import key_of
from chancellor.engines.residents import Residents
from chancellor.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
)
from tests.faulty import ANSWER, WAYS, A, B, FaultyEngine, Plan, fail, request, whole


def test_what_failed_is_not_started_for_each_request(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("chancellor.engines.gate.Breaker", lambda: Breaker(lambda: now[0]))
    plan = Plan(start_errors={"a/vllm/int8": [EngineStartError("x")]}, start_s=0.2)
    fail(pool, plan, request())
    for _ in range(3):
        deltas = list(pool.generate(A, request(), WAYS))
        (step,) = deltas[-1].fallbacks
        assert step["step"] == "unquantised"
        assert "It will be tried again in" in step["reason"]
    assert [spec.scheme for spec in FaultyEngine.starts] == ["int8", None]
    (paused,) = (breaker for breaker in pool._residents._gate._breakers.values() if breaker.failures)
    assert paused.paused_s() >= 2.0  # ten times what the failed start took
    now[0] += paused.paused_s()
    deltas = list(pool.generate(A, request(), WAYS))
    assert deltas[-1].fallbacks == ()
    assert [spec.scheme for spec in FaultyEngine.starts] == ["int8", None, "int8"]


def test_a_breaker_opens_longer_each_time() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    error = EngineStartError("x")
    pauses = []
    for _ in range(5):
        breaker.failed(error, 5.0)
        pauses.append(breaker.paused_s())
    assert pauses == [50.0, 150.0, 450.0, 600.0, 600.0]
    breaker.started()
    now[0] += 600
    assert breaker.paused_s() == 0
    for _ in range(4):
        breaker.died(error)
        assert breaker.paused_s() == 0
    breaker.died(error)
    assert breaker.paused_s() == 60.0


def test_an_engine_that_keeps_dying_is_left_alone_for_a_while(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[0] * 20))
    kinds = []
    for _ in range(9):
        try:
            kinds.append(whole(list(pool.generate(B, request()))))
        except EngineDiedError as error:
            kinds.append(error.message)
    assert len(FaultyEngine.starts) == 5
    assert any("It will be tried again in" in kind for kind in kinds)


def test_too_many_at_once_are_told_to_come_back(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(token_s=0.02))
    small = A.model_copy(update={"engine": A.engine.model_copy(update={"max_queue": 3})})

    async def one() -> str | EngineBusyError:
        try:
            return whole([delta async for delta in pool.agenerate(small, request())])
        except EngineBusyError as error:
            return error

    async def eight() -> list[str | EngineBusyError]:
        return list(await asyncio.gather(*(one() for _ in range(8))))

    made = asyncio.run(eight())
    assert made.count(ANSWER) == 3
    busy = [one for one in made if isinstance(one, EngineBusyError)]
    assert len(busy) == 5
    assert all(one.retry_after_s >= 1 for one in busy)
    assert asyncio.run(one()) == ANSWER


def test_a_start_that_succeeds_ends_the_pause() -> None:
    breaker = Breaker(lambda: 0.0)
    breaker.failed(EngineStartError("x"), 5.0)
    breaker.started()  # without another way a request may try again at once
    assert breaker.paused_s() == 0


def test_who_was_let_in_is_not_sent_away_after_a_death() -> None:
    FaultyEngine.reset()
    small = A.model_copy(update={"engine": A.engine.model_copy(update={"max_queue": 1})})

    async def scenario() -> None:
        residents = Residents(FaultyEngine)
        resident = await residents.enter(small)
        with pytest.raises(EngineBusyError):
            await Descent(small, None, residents).enter(emitted=False)
        descent = Descent(small, None, residents)
        await descent.died(EngineDiedError("x"))
        assert await descent.enter(emitted=True) is resident
        await residents.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("gpus", "engine", "most"),
    [
        (0, {}, 1024),
        (1, {}, 4096),
        (1, {"kind": "transformers", "vllm": {"max_num_seqs": 2}}, 4096),
        (1, {"max_num_seqs": 3}, 48),
        (1, {"max_num_seqs": 3, "vllm": {"max_num_seqs": 5}}, 80),
        (1, {"max_num_seqs": 3, "max_queue": 7}, 7),
        (1, {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}, 1024),
    ],
)
def test_sixteen_batches_of_the_engine_may_be_under_way(
    monkeypatch: pytest.MonkeyPatch, gpus: int, engine: dict[str, Any], most: int
) -> None:
    monkeypatch.setattr("chancellor.engines.gate._on_gpus", lambda: gpus > 0)
    spec = ModelSpec(name="m", source="fake/m", trinity=99, engine=EngineOptions(**engine))
    gate = Gate()
    gate.admit(spec, most - 1)
    with pytest.raises(EngineBusyError):
        gate.admit(spec, most)


def test_when_to_come_back_is_told_by_what_the_model_itself_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("chancellor.engines.gate.time", SimpleNamespace(monotonic=lambda: now[0]))
    gate = Gate()
    for _ in range(5):
        for spec, seconds in ((A, 4.0), (B, 1.0)):
            now[0] += seconds
            gate.ended(spec, key_of(spec))
    for spec, known in ((A, 20.0), (B.model_copy(update={"source": "fake/c"}), 1.0)):
        with pytest.raises(EngineBusyError) as caught:
            gate.admit(spec, 10**6)
        assert caught.value.retry_after_s == known
