import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor.engines import EnginePool
from chancellor.engines.pulse import Pulse
from chancellor.engines.vllm import VLLMEngine
from chancellor.errors import (
    EngineStartError,
)
from tests.faulty import ANSWER, WAYS, A, B, FaultyEngine, Plan, answered, request, until, whole


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
