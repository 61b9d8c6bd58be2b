import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import ClassVar

import psutil
import pytest

from chancellor import ModelSpec
from chancellor.engines import Delta, EnginePool
from chancellor.engines.ladder import Ladder
from chancellor.errors import ChancellorError, EngineStartError, OutOfMemoryError
from chancellor.fallbacks import FallbackOptions
from chancellor.memory import Device, Estimate
from tests.faulty import ANSWER, WAYS, A, B, Desk, FaultyEngine, Plan, answered, request, until, whole

IDLE, BUSY = "import time; time.sleep(60)", "while True: pass"
HOLDER = "import time; held = b'x' * (64 << 20); print('ready', flush=True); time.sleep(60)"


class Started(FaultyEngine):
    """In its first start it waits for a process, until that ends or makes it ready."""

    code: ClassVar[str] = IDLE
    seconds: ClassVar[float] = 60.0
    processes: ClassVar[list[subprocess.Popen[bytes]]] = []
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        if not Started.processes:
            self.process = subprocess.Popen([sys.executable, "-c", self.code])  # noqa: ASYNC220
            Started.processes.append(self.process)
            for _ in range(int(self.seconds / 0.05)):
                await asyncio.sleep(0.05)
                if self.process.poll() is not None:
                    FaultyEngine.starts.append(self.spec)
                    raise EngineStartError("Its process has ended.")
            self.process.kill()
        await super().start()

    def process_ids(self) -> list[int]:
        return [self.process.pid] if self.process is not None and self.process.poll() is None else []

    def interrupt(self) -> None:
        if self.process is not None:
            self.process.kill()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnginePool]:
    """A pool whose first start hangs; what does nothing is ended after 1.5 s."""
    FaultyEngine.reset()
    Started.processes.clear()
    monkeypatch.setattr("chancellor.engines.pulse._START_PATIENCE", 0.05)
    pool = EnginePool(Started)
    yield pool
    pool.close()
    for process in Started.processes:
        process.kill()
        process.wait()
    FaultyEngine.reset()


@pytest.mark.parametrize("stopped", [True, False])
def test_a_start_that_hangs_is_ended_and_holds_nobody_up(
    started: EnginePool, monkeypatch: pytest.MonkeyPatch, *, stopped: bool
) -> None:
    monkeypatch.setattr(Started, "code", IDLE)
    if stopped:
        monkeypatch.setattr("chancellor.engines.pulse._START_PATIENCE", 10.0)

    async def scenario() -> list[list[Delta]]:
        async def one(spec: ModelSpec) -> list[Delta]:
            return [delta async for delta in started.agenerate(spec, request(), WAYS)]

        first = asyncio.create_task(one(A))
        await until(lambda: Started.processes)
        if stopped:
            Started.processes[0].send_signal(signal.SIGSTOP)
        return list(await asyncio.gather(first, one(B)))

    made = asyncio.run(scenario())
    assert [whole(deltas) for deltas in made] == [ANSWER, ANSWER]
    (step,) = made[0][-1].fallbacks
    assert (step["step"], step["cause"]) == ("unquantised", "engine")
    assert ("is stopped" if stopped else "has not moved") in step["reason"]
    assert made[1][-1].fallbacks == ()


def test_a_start_that_computes_is_left_alone(started: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chancellor.engines.pulse._START_PATIENCE", 0.1)  # 3 s, for this machine may stand still
    monkeypatch.setattr(Started, "code", BUSY)
    monkeypatch.setattr(Started, "seconds", 6.0)
    assert whole(list(started.generate(A, request()))) == ANSWER


def test_a_start_without_a_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It downloads, for example."""
    monkeypatch.setattr("chancellor.engines.pulse._START_PATIENCE", 0.01)
    FaultyEngine.reset(Plan(start_s=3.0))
    pool = EnginePool(FaultyEngine)
    assert whole(list(pool.generate(A, request()))) == ANSWER
    pool.close()


def test_what_an_engine_takes_of_which_nobody_knew_the_need_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(Desk):
        def expected(self, spec: ModelSpec) -> Estimate | None:  # type: ignore[override]
            return None

        def _read(self) -> list[Device]:
            return [Device("cpu", 2**40, 2**40, 2**40)]

    class Holding(FaultyEngine):
        def process_ids(self) -> list[int]:
            return [process.pid]

    FaultyEngine.reset()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pool = EnginePool(Holding, room=Unknown(3))
        try:
            assert whole(list(pool.generate(A, request()))) == ANSWER
            (resident,) = pool._residents.ready()
            assert resident.takes["cpu"] > 64 << 20
        finally:
            pool.close()
            psutil.Process(process.pid).kill()


class Small(Desk):
    """Only a context below 4,096 tokens fits, and nothing else is short."""

    def expected(self, spec: ModelSpec) -> Estimate:
        weights = 9 if spec.name == "a" and spec.engine.max_model_len > 2048 else 1
        return Estimate(("cpu",), weights, 1, 1, activations=0, graphs=0, overhead=0)


def test_a_model_on_a_shorter_context_does_not_wait_behind_the_start_of_another() -> None:
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Small(8))
    assert list(pool.generate(A, request(), WAYS))[-1].fallbacks[0]["step"] == "shorter_context"
    FaultyEngine.plan.start_s = 3.0

    async def scenario() -> bool:
        other = asyncio.create_task(pool.astart(B))
        await until(lambda: len(FaultyEngine.starts) == 2)
        deltas = [delta async for delta in pool.agenerate(A, request(), WAYS)]
        assert "It will be tried again in" in deltas[-1].fallbacks[0]["reason"]
        with pytest.raises(OutOfMemoryError):  # nor does who gets an error
            await answered(pool, A)
        before = not other.done()
        await other
        return before

    assert asyncio.run(scenario())
    pool.close()


def test_a_model_that_did_not_fit_is_left_alone_for_some_seconds() -> None:
    """Even if it would, were others stopped: that may take minutes."""
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Desk(3))

    async def scenario() -> None:
        await pool.aengine(B)  # makes no room
        ways = Ladder(FallbackOptions(), lambda: [B])
        for _ in range(2):
            deltas = [delta async for delta in pool.agenerate(A, request(), ways)]
            assert deltas[-1].model == "b"
        assert "It will be tried again in" in deltas[-1].fallbacks[0]["reason"]
        paused = [one.paused_s() for one in pool._residents._gate._breakers.values() if one.failures]
        assert all(0 < seconds <= 30 for seconds in paused)

    asyncio.run(scenario())
    pool.close()


def test_an_engine_that_makes_room_slowly_does_not_hold_up_who_needs_none() -> None:
    class Sizes(Desk):
        def expected(self, spec: ModelSpec) -> Estimate:
            weights = {"a": 5, "b": 5, "c": 1}[spec.name]
            return Estimate(("cpu",), weights, 1, 1, activations=0, graphs=0, overhead=0)

    FaultyEngine.reset(Plan(token_s=0.05))
    pool = EnginePool(FaultyEngine, room=Sizes(8))
    small = B.model_copy(update={"name": "c", "source": "fake/c"})

    async def scenario() -> list[str]:
        busy = asyncio.create_task(answered(pool, A, max_tokens=100))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(answered(pool, B))
        await until(lambda: any(one.leaving for one in pool._residents._all.values()))
        texts = [await answered(pool, small)]
        assert not busy.done()
        return [*texts, *await asyncio.gather(busy, wants_room)]

    texts = asyncio.run(scenario())
    assert texts[::2] == [ANSWER, ANSWER]
    assert [spec.name for spec in FaultyEngine.starts] == ["a", "c", "b"]
    pool.close()


def test_room_that_is_being_made_is_not_taken_by_others() -> None:
    """Else the one for whom an engine was stopped would have to stop the next."""
    FaultyEngine.reset(Plan(token_s=0.02, start_s=0.05))
    pool = EnginePool(FaultyEngine, room=Desk(3))
    models = [B.model_copy(update={"name": name, "source": f"fake/{name}"}) for name in "bcde"]

    async def scenario() -> list[str]:
        busy = asyncio.create_task(answered(pool, A, max_tokens=60))
        await until(lambda: FaultyEngine.requests)
        texts = await asyncio.gather(*(answered(pool, model) for model in models))
        await busy
        return texts

    assert asyncio.run(scenario()) == [ANSWER] * 4
    assert FaultyEngine.most == 1
    assert len(FaultyEngine.starts) == 5
    pool.close()


def test_who_joins_a_start_that_fails_knows_what_it_lost() -> None:
    class Known(Desk):
        def free_mib(self) -> float:
            return 5.0

    errors: list[ChancellorError] = [EngineStartError("x")]
    FaultyEngine.reset(Plan(start_errors={"a/vllm/int8": errors}, start_s=1.0))
    pool = EnginePool(FaultyEngine, room=Known(9))

    async def scenario() -> list[list[Delta]]:
        async def one() -> list[Delta]:
            return [delta async for delta in pool.agenerate(A, request(), WAYS)]

        first = asyncio.create_task(one())
        await until(lambda: FaultyEngine.starts)
        return list(await asyncio.gather(first, one(), one()))

    for deltas in asyncio.run(scenario()):
        (step,) = deltas[-1].fallbacks
        assert step["seconds_lost"] > 0.1
        assert step["memory_before_mib"] == 5.0
    pool.close()
