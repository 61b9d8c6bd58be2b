"""What goes wrong with engines that sleep in processes of their own: real processes, on a GPU that is not there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chancellor.catalog import ModelSpec
from chancellor.engines import EnginePool, GenerationRequest, sleepers
from chancellor.engines.resident import key_of
from chancellor.errors import EngineDiedError
from tests.dozing import FOLDER, Cell, Dozing, alive, begun, fault
from tests.entries import GIB
from tests.sleepy import resident

A, B = (ModelSpec(name=name, source=f"shape:{name}", trinity=99) for name in "ab")
FRONT, CORE = 0, -1
"""Which of an engine's processes."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EnginePool, set[int]]]:
    """A pool, for starts take their time, and the processes that were seen of it."""
    seen: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("gpu")))
        # It may take as long as it likes, and sleeps all the same.
        for name, value in {"_STOP_S": 3600.0, "_FREED_S": 60.0, "host_free": lambda: 100 * GIB}.items():
            patch.setattr(sleepers, name, value)
        patch.setattr("chancellor.engines.swap._PATIENCE_S", (0.01, 0.05))
        pool = EnginePool(Dozing, room=Cell())
        yield pool, seen
        pool.close()
    until(lambda: not any(map(alive, seen)))


@pytest.fixture
def pool(shared: tuple[EnginePool, set[int]]) -> Iterator[EnginePool]:
    """Model a sleeps, and b is awake; afterwards both answer again."""
    pool, seen = shared
    pool._residents._swap._sleepers._unsound.clear()
    for model in (A, B):
        ask(pool, model)
    assert (pool.state(A), pool.state(B)) == ("asleep", "ready")
    before = {pid for model in (A, B) for pid in pids(pool, model)}
    seen |= before
    yield pool
    for model in (A, B, A):
        ask(pool, model)
    now = {pid for model in (A, B) if pool.state(model) != "stopped" for pid in pids(pool, model)}
    until(lambda: not any(map(alive, before - now)))  # of those that were ended nothing is left


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, "It did not come."
        time.sleep(0.01)


def ask(pool: EnginePool, model: ModelSpec) -> None:
    asked = GenerationRequest(prompt="x", max_tokens=5, retries=1, timeout_s=120)
    assert "".join(delta.text for delta in pool.generate(model, asked)) == f"{model.name} answers"


def pids(pool: EnginePool, model: ModelSpec) -> list[int]:
    engine = resident(pool, model).engine
    assert engine is not None
    found = engine.process_ids()
    assert len(found) == 2
    return found


def gave_up(pool: EnginePool, model: ModelSpec) -> bool:
    """Return whether the model's engine was ended because it did not sleep, or wake, as it should."""
    return key_of(model) in pool._residents._swap._sleepers._unsound


class Asked(threading.Thread):
    """Asks in a thread of its own."""

    def __init__(self, pool: EnginePool, model: ModelSpec) -> None:
        super().__init__(daemon=True)
        self.pool, self.model = pool, model
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            ask(self.pool, self.model)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> Exception | None:
        self.join(120)
        assert not self.is_alive()
        return self.error


@pytest.fixture
def goes_wrong() -> Iterator[Callable[[str, str, str], Path]]:
    """Have a model's sleep, or wake, go wrong, until the test ends."""
    files: list[Path] = []

    def make(what: str, name: str, how: str) -> Path:
        begun(what, name).unlink(missing_ok=True)
        files.append(fault(what, name))
        files[-1].write_text(how)
        return files[-1]

    yield make
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("which", [FRONT, CORE])
def test_killed_asleep(pool: EnginePool, which: int) -> None:
    os.kill(pids(pool, A)[which], signal.SIGKILL)
    until(lambda: pool.state(A) == "stopped")
    assert pool.asleep() == {"b": False}
    ask(pool, A)
    assert not gave_up(pool, A)  # it sleeps again


def test_stopped_asleep(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    old = pids(pool, A)
    os.kill(old[FRONT], signal.SIGSTOP)
    monkeypatch.setattr(sleepers, "_WAKE_LIMIT_S", 0.5)
    ask(pool, A)
    assert gave_up(pool, A)
    assert not set(old) & set(pids(pool, A))


@pytest.mark.parametrize("how", ["raise", "hang", "block"])
def test_a_wake_that_fails(
    pool: EnginePool, goes_wrong: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    old = pids(pool, A)
    goes_wrong("wake", "a", how)
    if how != "raise":
        monkeypatch.setattr(sleepers, "_WAKE_LIMIT_S", 0.5)
    ask(pool, A)
    assert gave_up(pool, A)
    assert not set(old) & set(pids(pool, A))


@pytest.mark.parametrize("which", [FRONT, CORE])
def test_killed_while_it_wakes(
    pool: EnginePool, goes_wrong: Callable[..., Path], caplog: pytest.LogCaptureFixture, which: int
) -> None:
    held = goes_wrong("wake", "a", "hold")
    asked = Asked(pool, A)
    until(begun("wake", "a").exists)
    os.kill(pids(pool, A)[which], signal.SIGKILL)
    assert asked.ended() is None
    held.unlink()
    assert gave_up(pool, A)
    assert not any("while it answered" in message for message in caplog.messages)


@pytest.mark.parametrize("which", [FRONT, CORE])
def test_killed_while_it_falls_asleep(pool: EnginePool, goes_wrong: Callable[..., Path], which: int) -> None:
    held = goes_wrong("sleep", "b", "hold")
    asked = Asked(pool, A)
    until(begun("sleep", "b").exists)
    os.kill(pids(pool, B)[which], signal.SIGKILL)
    assert asked.ended() is None
    held.unlink()
    assert gave_up(pool, B)
    assert pool.asleep() == {"a": False}


def test_closed_while_one_falls_asleep(pool: EnginePool, goes_wrong: Callable[..., Path]) -> None:
    held = goes_wrong("sleep", "b", "hold")
    asked = Asked(pool, A)
    until(begun("sleep", "b").exists)
    all_of_them = [pid for model in (A, B) for pid in pids(pool, model)]
    pool.close()
    assert isinstance(asked.ended(), EngineDiedError)
    held.unlink()
    until(lambda: not any(map(alive, all_of_them)))
