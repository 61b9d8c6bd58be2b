import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from chancellor import ModelSpec, progress
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.errors import EngineDiedError, EngineStartError
from tests.fakes import FakeEngine, catalog

LIGHT, BEST = catalog()["light"], catalog()["best"]


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> EnginePool:
    return EnginePool(fake_engine)


def request(text: str = "hi") -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}])


def answer(pool: EnginePool, text: str = "hi") -> str:
    return "".join(delta.text for delta in pool.generate(LIGHT, request(text)))


async def aanswer(pool: EnginePool, text: str = "hi") -> str:
    return "".join([delta.text async for delta in pool.agenerate(LIGHT, request(text))])


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def starting(pool: EnginePool) -> bool:
    """Whether a start has had its turn."""
    return any(one.starting for one in tuple(pool._residents._all.values()))


def test_one_engine_however_many_ask_at_once(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.start_s = 0.2

    async def eight() -> list[str]:
        return await asyncio.gather(*(aanswer(pool) for _ in range(8)))

    with ThreadPoolExecutor(4) as threads:
        lots = list(threads.map(lambda _: asyncio.run(eight()), range(4)))
    assert lots == [["light says: hi"] * 8] * 4
    assert fake_engine.started == ["light"]


def test_an_entry_that_differs_in_name_and_score_only_shares_the_engine(
    pool: EnginePool, fake_engine: type[FakeEngine]
) -> None:
    pool.start(LIGHT)
    pool.start(LIGHT.model_copy(update={"name": "other", "trinity": 99.0, "tier": "strong"}))
    pool.start(LIGHT.model_copy(update={"scheme": None}))
    assert fake_engine.started == ["light", "light"]


def test_engines_start_one_after_another(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.start_s = 0.2
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(pool.start, [LIGHT, BEST]))
    assert time.perf_counter() - began >= 0.4


def test_a_failed_start_reaches_every_waiter_and_is_tried_again(
    pool: EnginePool, fake_engine: type[FakeEngine]
) -> None:
    fake_engine.fail_starts, fake_engine.start_s = 1, 0.1

    async def both() -> list[object]:
        return list(await asyncio.gather(aanswer(pool), aanswer(pool), return_exceptions=True))

    assert [type(result) for result in asyncio.run(both())] == [EngineStartError, EngineStartError]
    assert answer(pool) == "light says: hi"


def test_cancelling_one_waiter_leaves_the_start_to_the_others(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.start_s = 0.2

    async def scenario() -> str:
        first = asyncio.create_task(aanswer(pool))
        second = asyncio.create_task(aanswer(pool))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert asyncio.run(scenario()) == "light says: hi"
    assert fake_engine.started == ["light"]


def test_cancelling_aborts_the_request(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    pool.start(LIGHT)
    fake_engine.delta_s = 0.5

    async def scenario() -> None:
        task = asyncio.create_task(aanswer(pool, "a question of several words"))
        await asyncio.to_thread(until, lambda: fake_engine.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    until(lambda: fake_engine.aborted)
    assert fake_engine.aborted == ["a question of several words"]


def test_a_dead_engine_is_replaced_with_the_next_request(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    assert answer(pool) == "light says: hi"
    with pytest.raises(EngineDiedError):
        answer(pool, "die")
    assert answer(pool) == "light says: hi"
    assert fake_engine.started == ["light", "light"]
    assert fake_engine.closed == ["light"]


def test_close_and_use_again(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    before = set(threading.enumerate())
    pool.start(LIGHT)
    pool.start(BEST)
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["chancellor-engines"]
    pool.close()
    assert sorted(fake_engine.closed) == ["best", "light"]
    assert set(threading.enumerate()) <= before
    assert answer(pool) == "light says: hi"


def test_close_during_a_start_waits_and_closes(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.start_s = 0.3
    starter = threading.Thread(target=_start_quietly, args=(pool, LIGHT), daemon=True)
    starter.start()
    until(lambda: starting(pool))
    pool.close()
    assert fake_engine.closed == ["light"]
    starter.join(30)
    assert not starter.is_alive()


def test_close_ends_running_requests_with_an_error(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.delta_s = 1.0
    outcomes: list[object] = []

    def sync() -> None:
        try:
            outcomes.append(answer(pool, "a question of several words"))
        except EngineDiedError as error:
            outcomes.append(error)

    def asynchronous() -> None:
        try:
            outcomes.append(asyncio.run(aanswer(pool, "a question of several words")))
        except EngineDiedError as error:
            outcomes.append(error)

    pool.start(LIGHT)
    threads = [threading.Thread(target=work, daemon=True) for work in (sync, asynchronous)]
    for thread in threads:
        thread.start()
    until(lambda: len(fake_engine.requests) == 2)
    pool.close()
    for thread in threads:
        thread.join(30)
    assert [type(outcome) for outcome in outcomes] == [EngineDiedError, EngineDiedError]
    fake_engine.delta_s = 0
    assert answer(pool) == "light says: hi"


def test_close_does_not_wait_for_starts_that_have_not_begun(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    fake_engine.held = True
    threads = [threading.Thread(target=_start_quietly, args=(pool, one), daemon=True) for one in (LIGHT, BEST)]
    threads[0].start()
    until(lambda: starting(pool))
    threads[1].start()
    until(lambda: len(pool._residents._all) == 2)
    residents = pool._residents
    closing = threading.Thread(target=pool.close)
    closing.start()
    until(lambda: residents.closing)
    fake_engine.held = False
    closing.join(30)
    assert fake_engine.started == fake_engine.closed == ["light"]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def _start_quietly(pool: EnginePool, spec: ModelSpec) -> None:
    with suppress(BaseException):
        pool.start(spec)


def test_a_forked_child_leaves_the_parents_engines_alone(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    pool.start(LIGHT)
    fake_engine.closed.clear()
    child = os.fork()
    if child == 0:
        pool.close()
        os._exit(len(fake_engine.closed))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert answer(pool) == "light says: hi"
    assert fake_engine.started == ["light"]


def test_progress_and_stats(pool: EnginePool) -> None:
    steps: list[progress.Progress] = []
    with progress.listening(steps.append):
        pool.start(LIGHT)
    assert [step["stage"] for step in steps] == ["ready"]
    assert pool.stats()["light"].running == 0


def test_a_listener_that_fails_harms_nothing(pool: EnginePool) -> None:
    def broken(step: progress.Progress) -> None:
        raise RuntimeError

    with progress.listening(broken):
        assert answer(pool) == "light says: hi"
