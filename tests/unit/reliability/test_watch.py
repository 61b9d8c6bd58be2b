import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor.engines import EnginePool, watch
from chancellor.engines.pulse import Pulse
from chancellor.engines.resident import Resident, key_of
from chancellor.engines.vllm import VLLMEngine
from chancellor.errors import (
    EngineStartError,
)
from tests.faulty import ANSWER, WAYS, A, B, Desk, FaultyEngine, Plan, answered, request, until, whole
from tests.sleepy import dead_engine, resident


def test_a_hanging_engine_is_ended_and_its_requests_go_on(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(token_s=0.1))
    stream = pool.generate(A, request(), WAYS)
    first = next(stream)
    FaultyEngine.plan.hangs = True
    deltas = [first, *stream]
    assert whole(deltas) == ANSWER
    assert [step["step"] for step in deltas[-1].fallbacks] == ["restart"]


def test_a_start_that_was_stopped_has_not_failed() -> None:
    class Interrupted(FaultyEngine):
        interrupted = False

        def interrupt(self) -> None:
            self.interrupted = True

        async def start(self) -> None:
            await super().start()
            if self.interrupted:
                self.kill()
                raise EngineStartError("It was interrupted.")

    FaultyEngine.reset(Plan(start_s=0.2))
    pool = EnginePool(Interrupted)

    async def scenario() -> str:
        asked = asyncio.create_task(answered(pool, A))
        await until(lambda: FaultyEngine.starts)
        await pool.astop(A)
        with suppress(EngineStartError):
            await asked
        return whole([delta async for delta in pool.agenerate(A, request(), WAYS)])

    assert asyncio.run(scenario()) == ANSWER
    assert {spec.scheme for spec in FaultyEngine.starts} == {"int8"}
    pool.close()


def test_one_engine_that_cannot_be_watched_does_not_end_the_watch() -> None:
    class Odd(FaultyEngine):
        def stalled(self) -> str | None:
            if self.spec.name == "b":
                raise OSError("no such process")
            return super().stalled()

    FaultyEngine.reset(Plan(token_s=0.05))
    pool = EnginePool(Odd)
    pool.start(B)
    time.sleep(1.1)
    stream = pool.generate(A, request())
    first = next(stream)
    FaultyEngine.plan.hangs = True
    assert whole([first, *stream]) == ANSWER
    pool.close()


def test_a_pause_of_the_whole_program_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("chancellor.engines.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulse = Pulse()
    reasons = []
    for at in (1, 2, 1000, *range(1001, 1040)):  # Ctrl-Z and fg, or a virtual machine that was put to sleep
        now[0] = float(at)
        reasons.append(pulse.stalled(busy=True))
    assert reasons[:30] == [None] * 30
    assert reasons[-1] is not None


def test_a_start_that_hangs_in_its_first_steps_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, killed = VLLMEngine(B), []
    monkeypatch.setattr(engine, "kill", lambda: killed.append(True))
    engine._llm = SimpleNamespace()
    engine.interrupt()
    assert killed == [True]


def test_a_batch_that_nobody_streams_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from chancellor.engines import transformers_worker

    now = [100.0]
    monkeypatch.setattr(transformers_worker, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    sent: list[Any] = []
    worker: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(backend_tokenizer=None),
        eos=torch.tensor([]),
        connection=SimpleNamespace(send=sent.append),
        aborted=set(),
    )
    question = transformers_worker.Question("1", [1], 10_000, 0.0, 1.0, None, (), True, False, 0.0)
    steps = transformers_worker._Steps(worker, [question], 1, now[0])
    for _ in range(20):
        now[0] += 1
        steps(torch.tensor([[1, 2]]), None)
    assert sent == [("beat",)] * 3


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnginePool]:
    """Room for two, and a watch that looks often and leaves a dead engine for nobody."""
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(watch, "_DEAD_S", 0.0)
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Desk(6))
    yield pool
    pool.close()
    FaultyEngine.reset()


async def looks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the watch has looked so many times."""
    seen = []
    look = watch.Watch._look_at

    async def counted(self: watch.Watch, resident: Any, engine: Any) -> None:
        await look(self, resident, engine)
        seen.append(resident)

    monkeypatch.setattr(watch.Watch, "_look_at", counted)
    await until(lambda: len(seen) >= count)


def test_one_that_dies_while_nobody_asks_is_ended(roomy: EnginePool) -> None:
    closed: list[str] = []

    class Closing(FaultyEngine):
        async def close(self) -> None:
            closed.append(self.spec.name)
            await super().close()

    roomy._residents._starts._factory = Closing
    roomy.start(A)
    roomy.start(B)

    async def scenario() -> None:
        gone = resident(roomy, A)
        assert gone.takes
        await dead_engine(roomy, A)
        await until(lambda: roomy.state(A) == "stopped")
        assert gone.engine is None

    asyncio.run(scenario())
    assert closed == ["a"]
    assert roomy._residents._swap.taken(resident(roomy, B)) == Counter()
    assert roomy.state(B) == "ready"
    (death,) = roomy._residents._gate.breaker(key_of(A))._deaths  # as for any other
    assert not death[1]
    assert whole(list(roomy.generate(A, request()))) == ANSWER
    assert len(roomy._residents._gate.breaker(key_of(A))._deaths) == 1


def test_its_last_words_are_read(
    roomy: EnginePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Resident, "shortage", lambda _: "no memory left")
    roomy.start(A)

    async def scenario() -> None:
        await dead_engine(roomy, A)
        await until(lambda: roomy.state(A) == "stopped")

    asyncio.run(scenario())
    assert "The engine of 'a' has died: no memory left" in caplog.messages
    (death,) = roomy._residents._gate.breaker(key_of(A))._deaths
    assert death[1]


def test_it_is_left_for_a_while_for_who_starts_it_again(roomy: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_DEAD_S", 600.0)
    roomy.start(A)

    async def scenario() -> None:
        await dead_engine(roomy, A)
        await looks(3, monkeypatch)
        assert roomy.state(A) == "starting"  # which Ray's replicas look for
        await roomy.astart(A)

    asyncio.run(scenario())
    assert roomy.state(A) == "ready"


def test_one_that_is_still_asked_is_left_to_its_requests(roomy: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy.start(A)

    async def scenario() -> None:
        one = resident(roomy, A)
        one.enter()
        await dead_engine(roomy, A)
        await looks(3, monkeypatch)
        assert roomy._residents._all[key_of(A)] is one
        one.leave()
        await until(lambda: roomy.state(A) == "stopped")

    asyncio.run(scenario())


def test_a_server_that_is_away_is_not_given_up(roomy: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    far = A.model_copy(update={"engine": A.engine.model_copy(update={"kind": "openai"})})
    roomy.start(far)

    async def scenario() -> None:
        await dead_engine(roomy, far)
        await looks(3, monkeypatch)

    asyncio.run(scenario())
    assert roomy.state(far) == "starting"
