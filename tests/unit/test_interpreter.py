import asyncio
import gc
import sys
from collections.abc import Iterator

import pytest

from chancellor.engines import interpreter
from chancellor.engines.host import EngineHost
from chancellor.settings import settings


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for setting in (interpreter._switches, interpreter._rounds):
        monkeypatch.setattr(setting, "_users", 0)  # other tests leave theirs running
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    settings.cache_clear()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    settings.cache_clear()


@pytest.fixture
def hosts() -> tuple[EngineHost, EngineHost]:
    return EngineHost(), EngineHost()


def run(host: EngineHost) -> None:
    host.call(asyncio.sleep(0))


@pytest.mark.parametrize(
    ("asked", "before", "during"),
    [(None, 0.005, 0.0005), ("2", 0.005, 0.002), ("0", 0.005, 0.005), ("2", 0.001, 0.001)],
)
def test_threads_take_turns_sooner_while_engines_run(
    asked: str | None, before: float, during: float, hosts: tuple[EngineHost, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is not None:
        monkeypatch.setenv("CHANCELLOR_SWITCH_INTERVAL_MS", asked)
    sys.setswitchinterval(before)
    for host in hosts:
        run(host)
    hosts[0].stop()
    assert sys.getswitchinterval() == pytest.approx(during)
    hosts[1].stop()
    assert sys.getswitchinterval() == pytest.approx(before)


@pytest.mark.parametrize(
    ("asked", "before", "during"),
    [
        (None, (700, 10, 10), (50_000, 10, 10)),
        ("9000", (700, 5, 7), (9000, 5, 7)),
        ("0", (700, 10, 10), (700, 10, 10)),
        (None, (100_000, 10, 10), (100_000, 10, 10)),
        (None, (0, 10, 10), (0, 10, 10)),  # switched off
    ],
)
def test_garbage_is_looked_for_less_often_while_engines_run(
    asked: str | None,
    before: tuple[int, int, int],
    during: tuple[int, int, int],
    hosts: tuple[EngineHost, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if asked is not None:
        monkeypatch.setenv("CHANCELLOR_GC_THRESHOLD", asked)
    gc.set_threshold(*before)
    for host in hosts:
        run(host)
    hosts[0].stop()
    assert gc.get_threshold() == during
    hosts[1].stop()
    assert gc.get_threshold() == before


def test_what_is_set_meanwhile_stays(hosts: tuple[EngineHost, ...]) -> None:
    run(hosts[0])
    sys.setswitchinterval(0.003)
    gc.set_threshold(1000, 10, 10)
    hosts[0].stop()
    assert sys.getswitchinterval() == pytest.approx(0.003)
    assert gc.get_threshold() == (1000, 10, 10)


def test_many_runs_at_a_time_set_off_no_rounds(hosts: tuple[EngineHost, ...]) -> None:
    gc.set_threshold(700, 10, 10)
    run(hosts[0])
    rounds: list[int] = []

    def record(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            rounds.append(info["generation"])

    gc.collect()
    gc.callbacks.append(record)
    try:
        kept = [[number] for number in range(20_000)]
    finally:
        gc.callbacks.remove(record)
        hosts[0].stop()
    assert len(kept) == 20_000
    assert not rounds
