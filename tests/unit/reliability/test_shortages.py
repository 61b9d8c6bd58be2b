from collections.abc import Iterator
from typing import Any

import pytest

from chancellor import ModelSpec
from chancellor.engines import EnginePool
from chancellor.engines.breaker import Breaker
from chancellor.engines.logs import log_file
from chancellor.engines.room import Fit, smaller_cache
from chancellor.errors import EngineDiedError, OutOfMemoryError
from chancellor.memory import Device, Estimate, cgroup
from tests.faulty import ANSWER, WAYS, A, B, Desk, FaultyEngine, Plan, request, whole

GIB = 2**30


class Short(FaultyEngine):
    """Says in its log why it dies."""

    words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."

    def kill(self) -> None:
        if self._alive and FaultyEngine.requests:
            with log_file().open("a", encoding="utf-8") as log:
                log.write(f"{self.words}\n")
        super().kill()


@pytest.fixture
def short() -> Iterator[EnginePool]:
    FaultyEngine.reset()
    pool = EnginePool(Short)
    yield pool
    FaultyEngine.requests.clear()
    pool.close()
    FaultyEngine.reset()


@pytest.mark.parametrize("died_after", [0, 3])
def test_a_death_for_want_of_memory_says_so_and_the_next_leads_to_a_shorter_context(
    short: EnginePool, died_after: int
) -> None:
    FaultyEngine.reset(Plan(deaths=[3]))
    deltas = list(short.generate(A, request(), WAYS))
    (step,) = deltas[-1].fallbacks
    assert (whole(deltas), step["step"], step["cause"]) == (ANSWER, "restart", "memory")
    assert "CUDA out of memory" in step["reason"]

    FaultyEngine.plan.deaths = [died_after]  # an answer that has begun goes on there
    deltas = list(short.generate(A, request(), WAYS))
    (step,) = deltas[-1].fallbacks
    assert (whole(deltas), step["step"], step["cause"]) == (ANSWER, "shorter_context", "memory")
    assert [spec.engine.max_model_len for spec in FaultyEngine.starts] == [4096, 4096, 2048]


def test_a_death_of_which_the_log_says_nothing_is_a_death(short: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed (-9) may have been killed by anybody."""
    monkeypatch.setattr(Short, "words", "Worker failed with exit code -9")
    for _ in range(3):
        FaultyEngine.plan.deaths = [0]
        (step,) = list(short.generate(A, request(), WAYS))[-1].fallbacks
        assert (step["step"], step["cause"]) == ("restart", "died")


def test_a_process_that_the_kernel_has_killed_died_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = [7]
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills[0])

    class Killed(FaultyEngine):
        def kill(self) -> None:
            kills[0] += 1
            super().kill()

    FaultyEngine.reset(Plan(deaths=[3]))
    own = EnginePool(Killed)
    (step,) = list(own.generate(A, request(), WAYS))[-1].fallbacks
    assert (step["step"], step["cause"]) == ("restart", "memory")
    own.close()


def test_two_deaths_for_want_of_memory_pause_it() -> None:
    breaker = Breaker(lambda: 0.0)
    breaker.died(OutOfMemoryError("x"))
    assert breaker.paused_s() == 0
    breaker.died(EngineDiedError("x"))
    assert breaker.paused_s() == 0
    breaker.died(OutOfMemoryError("y"))
    assert breaker.paused_s() == 60
    assert isinstance(breaker.error, OutOfMemoryError)


class Cramped(Desk):
    """Room for the model and three units of KV cache."""

    wants = 8

    def expected(self, spec: ModelSpec) -> Estimate:
        return Estimate(("cpu",), GIB, self.wants * GIB, GIB, activations=0, graphs=0, overhead=0)

    def _read(self) -> list[Device]:
        return [Device("cpu", 4 * GIB, 4 * GIB, 4 * GIB)]


@pytest.mark.parametrize(
    ("wants", "given", "noted"), [(8, None, True), (6, None, False), (4, None, False), (4, 4.0, True), (3, 3.0, False)]
)
def test_a_smaller_kv_cache_is_a_step(wants: int, given: float | None, *, noted: bool) -> None:
    room = Cramped(4)
    room.wants = wants
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=room)
    spec = A.model_copy(update={"engine": A.engine.model_copy(update={"kv_cache_gib": given})})
    for _ in range(2):  # each answer says so
        steps = list(pool.generate(spec, request()))[-1].fallbacks
        assert [step["step"] for step in steps] == (["smaller_cache"] if noted else [])
    if noted:
        assert steps[0]["cause"] == "memory"
        assert steps[0]["from"].endswith(f"KV cache {wants:.2f} GiB")
        assert steps[0]["to"].endswith("KV cache 3.00 GiB")
    pool.close()


def test_after_a_restart_the_smaller_cache_is_noted_once() -> None:
    FaultyEngine.reset(Plan(deaths=[3]))
    pool = EnginePool(FaultyEngine, room=Cramped(4))
    steps = list(pool.generate(A, request()))[-1].fallbacks
    assert [step["step"] for step in steps] == ["smaller_cache", "restart"]
    pool.close()


def test_transformers_has_no_cache_of_its_own_size() -> None:
    spec = B.model_copy(update={"engine": B.engine.model_copy(update={"kind": "transformers"})})
    need = Estimate(("cpu",), 1, 8, 1, activations=0, graphs=0, overhead=0)
    assert smaller_cache(spec, need, Fit(1, comfortable=False, possible=True, available=2)) is None


def test_a_rung_shortens_what_wins_over_it_as_well() -> None:
    vllm: dict[str, Any] = {"max_model_len": 8192, "kv_cache_memory_bytes": 8 * GIB, "seed": 1}
    spec = A.model_copy(update={"engine": A.engine.model_copy(update={"vllm": vllm})})
    rung = next(WAYS.below(spec, "memory"))
    assert rung.spec.engine.vllm == {"max_model_len": 4096, "kv_cache_memory_bytes": 4 * GIB, "seed": 1}
    assert rung.spec.context_window == 4096
