"""The process of an engine's front end, from its start to its end; a fake engine runs in it."""

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chancellor import ModelSpec
from chancellor.engines import EnginePool, GenerationRequest, spawn
from chancellor.errors import EngineDiedError, EngineStartError
from tests.apart import Apart

SPEC = ModelSpec(name="m", source="shape:nano", trinity=99)
ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
from chancellor import ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from tests.apart import Apart
spec = ModelSpec(name="m", source="shape:nano", trinity=99)
"""


async def ask(engine: Apart, text: str = "a") -> str:
    return "".join([delta.text async for delta in engine.generate(GenerationRequest(prompt=text))])


async def test_from_its_start_to_its_end() -> None:
    engine = Apart(SPEC)
    assert engine.process_ids() == []
    await engine.start()
    try:
        (pid,) = engine.process_ids()
        assert await ask(engine) == "m says: a"
        assert "spawn_main" in " ".join(psutil.Process(pid).cmdline())
    finally:
        began = time.monotonic()
        await engine.close()
    assert time.monotonic() - began < 14  # it was not killed, which would be after 15
    assert not psutil.pid_exists(pid)
    await engine.close()


async def test_nothing_of_it_stays_behind() -> None:
    async def once() -> int:
        engine = Apart(SPEC)
        await engine.start()
        await engine.close()
        gc.collect()  # other tests' sockets go before they are counted, not in between
        return psutil.Process().num_fds()

    others = {child.pid for child in multiprocessing.active_children()}  # other tests' engines
    before = await once()
    assert [await once() for _ in range(3)] == [before] * 3
    assert {child.pid for child in multiprocessing.active_children()} <= others


@pytest.fixture
def fork() -> Iterator[Callable[[], None]]:
    """Leave a copy of all that is open now in a child."""
    children: list[int] = []

    def fork() -> None:
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_a_child_that_was_forked_does_not_keep_it_alive(fork: Callable[[], None]) -> None:
    engine = Apart(SPEC)
    await engine.start()
    (pid,) = engine.process_ids()
    fork()
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began < 14  # as above
    assert not psutil.pid_exists(pid)


def test_a_child_that_is_forked_during_a_start_can_start_one_itself() -> None:
    with spawn.starting, spawn.environment({"CHANCELLOR_A_START": "1"}):
        if (child := os.fork()) == 0:
            free = spawn.starting.acquire(timeout=5)
            os._exit(0 if free and "CHANCELLOR_A_START" not in os.environ else 1)
        assert os.environ["CHANCELLOR_A_START"] == "1"
    assert os.waitpid(child, 0)[1] == 0
    assert "CHANCELLOR_A_START" not in os.environ


async def test_an_engine_does_not_watch_what_another_pool_starts_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Apart(SPEC), Apart(SPEC)
    watch = one._processes.watch
    monkeypatch.setattr(one._processes, "watch", lambda _: None)
    await one.start()
    await other.start()
    try:
        watch(one._lost)
        assert len(one._processes._sentinels) == 1
        await other.close()
        await asyncio.sleep(0.2)
        assert one.healthy()
    finally:
        await one.close()


async def test_it_dies() -> None:
    engine = Apart(SPEC)
    await engine.start()
    os.kill(engine.process_ids()[0], signal.SIGKILL)
    async with asyncio.timeout(30):
        while engine.healthy():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    with pytest.raises(EngineDiedError):
        await ask(engine)
    await engine.close()


async def test_a_start_that_is_interrupted() -> None:
    engine = Apart(SPEC.model_copy(update={"name": "slow"}))
    start = asyncio.create_task(engine.start())
    front = engine._front
    while front._process is None or front._process.pid is None:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    pid = front._process.pid
    began = time.monotonic()
    while not start.done():  # as a pool does
        engine.interrupt()
        await asyncio.wait({start}, timeout=0.5)
    with pytest.raises(EngineStartError, match="interrupted"):
        await start
    assert time.monotonic() - began < 30
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    "body",
    [
        "def main():\n    pool = EnginePool(Apart)\n    pool.start(spec)\nmain()\n",
        "pool = EnginePool(Apart)\npool.start(spec)\n",
    ],
    ids=["a pool that nobody has any more", "a pool"],
)
def test_a_program_that_closes_nothing_ends(body: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + body], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_several_in_one_pool() -> None:
    pool = EnginePool(Apart)
    try:
        specs = [SPEC, SPEC.model_copy(update={"source": "shape:other"})]
        for spec in specs:
            pool.start(spec)
        for spec in specs:
            assert "".join(delta.text for delta in pool.generate(spec, GenerationRequest(prompt="a"))) == "m says: a"
    finally:
        pool.close()
