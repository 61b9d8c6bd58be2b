import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from chancellor.engines.host import EngineHost
from chancellor.engines.inbox import End, Inbox
from chancellor.errors import EngineDiedError


@pytest.fixture
def host() -> EngineHost:
    return EngineHost()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def endless() -> AsyncIterator[int]:
    while True:
        yield 1
        await asyncio.sleep(0.001)


async def all_of(items: AsyncIterator[int]) -> list[int]:
    return [number async for number in items]


async def where() -> str:
    return threading.current_thread().name


def test_all_coroutines_run_on_one_thread(host: EngineHost) -> None:
    async def from_a_loop() -> str:
        return await host.acall(where())

    seen = {host.call(where()), asyncio.run(from_a_loop()), asyncio.run(from_a_loop())}
    assert seen == {"chancellor-engines"}


def test_iterating_from_sync_code_and_from_four_loops(host: EngineHost) -> None:
    async def collect() -> list[int]:
        return [number async for number in host.aiterate(lambda: numbers(500))]

    results: list[list[int]] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(collect()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    results.append(list(host.iterate(lambda: numbers(500))))
    for thread in threads:
        thread.join()
    assert results == [list(range(500))] * 5


def test_errors_come_through_after_the_items(host: EngineHost) -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    items = host.iterate(failing)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)

    async def both() -> None:
        aitems = host.aiterate(failing)
        assert await anext(aitems) == 1
        with pytest.raises(ValueError, match="broken"):
            await anext(aitems)

    asyncio.run(both())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_leaving_early_closes_the_source(host: EngineHost, asynchronous: bool) -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def take_one() -> None:
        async with aclosing(host.aiterate(endless)) as items:
            async for _ in items:
                break

    if asynchronous:
        asyncio.run(take_one())
    else:
        for _ in host.iterate(endless):
            break
    assert closed.wait(30)


def test_cancelling_the_caller_cancels_the_work(host: EngineHost) -> None:
    cancelled, started = threading.Event(), threading.Event()

    async def slow() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def caller() -> None:
        task = asyncio.create_task(host.acall(slow()))
        await asyncio.to_thread(started.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(caller())
    assert cancelled.wait(30)


@pytest.mark.parametrize("pause_s", [0.001, 600], ids=["while it sends", "while it waits"])
def test_a_closed_caller_loop_ends_the_source(host: EngineHost, pause_s: float) -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(pause_s)
        finally:
            closed.set()

    complaints: list[Any] = []
    host.loop().set_exception_handler(lambda _, context: complaints.append(context))
    loop = asyncio.new_event_loop()
    items = host.aiterate(endless)
    loop.run_until_complete(anext(items))
    loop.close()
    assert pause_s > 1 or closed.wait(30)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(items.aclose())
    loop.close()
    assert closed.wait(30)
    host.call(asyncio.sleep(0.01))
    gc.collect()
    host.call(asyncio.sleep(0))
    assert complaints == []  # such as "Task exception was never retrieved"


def test_stop_and_start_again(host: EngineHost) -> None:
    host.call(where())
    host.stop()
    assert host.call(where()) == "chancellor-engines"


def test_what_a_stop_still_ends_is_over_before_anything_new_runs(host: EngineHost) -> None:
    seen: list[str] = []
    started = threading.Event()

    async def lingers() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            seen.append("old")

    async def new() -> None:
        seen.append("new")

    host.submit(lingers())
    assert started.wait(30)
    stopping = threading.Thread(target=host.stop)
    stopping.start()
    while host.running:
        time.sleep(0.001)
    host.call(new())
    stopping.join()
    assert seen == ["old", "new"]


class Stopping(EngineHost):
    """Another thread stops it while a coroutine is handed to its loop."""

    def loop(self) -> asyncio.AbstractEventLoop:
        loop = super().loop()
        threading.Thread(target=self.stop).start()
        time.sleep(0.1)
        return loop


async def test_what_is_submitted_while_the_host_stops_ends_with_it() -> None:
    async with asyncio.timeout(30):
        with pytest.raises(EngineDiedError):
            await all_of(Stopping().aiterate(endless))


async def test_a_request_that_has_not_begun_when_the_host_stops_ends_with_it(host: EngineHost) -> None:
    busy = threading.Event()
    host.loop().call_soon_threadsafe(busy.wait, 30)

    async def stop() -> None:
        await asyncio.sleep(0)  # until the request is on its way
        host.loop().call_soon_threadsafe(host.loop().stop)
        busy.set()

    stopping = asyncio.create_task(stop())
    async with asyncio.timeout(30):
        with pytest.raises(EngineDiedError):
            await all_of(host.aiterate(endless))
    await stopping


async def test_a_task_that_wants_to_exit_does_not_take_the_others_with_it(host: EngineHost) -> None:
    async def quits() -> None:
        raise SystemExit(3)

    beside = host.aiterate(lambda: numbers(500))
    assert await anext(beside) == 0
    with pytest.raises(SystemExit):
        await asyncio.to_thread(lambda: host.submit(quits()).result(30))
    async with asyncio.timeout(30):
        assert await all_of(beside) == list(range(1, 500))
        assert await host.acall(where()) == "chancellor-engines"


class Broken:
    """Has no items, and cannot be closed either."""

    def __aiter__(self) -> "Broken":
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        raise ValueError("broken")


async def test_a_source_that_cannot_be_opened_or_closed_keeps_nobody_waiting(host: EngineHost) -> None:
    def refuses() -> AsyncIterator[int]:
        raise ValueError("broken")

    async with asyncio.timeout(30):
        with pytest.raises(ValueError, match="broken"):
            await anext(host.aiterate(refuses))
        assert await all_of(host.aiterate(Broken)) == []


class Slow(Inbox[int]):
    """Its writer sees who waits, and is then held up until the reader has its item and waits again."""

    def __init__(self) -> None:
        self.waits, self.seen, self.waits_again = threading.Event(), threading.Event(), threading.Event()
        super().__init__(asyncio.get_running_loop())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_waiter" and value is not None:
            if self.waits.is_set():
                self.waits_again.set()
            else:
                self.waits.set()
                self.seen.wait(30)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "_waiter" and not self.seen.is_set():
            self.seen.set()
            self.waits_again.wait(30)
        return value


async def test_a_slow_writer_does_not_lose_who_waits_by_now() -> None:
    inbox = Slow()

    def write() -> None:
        inbox.waits.wait(30)
        for item in (1, 2, End()):
            inbox.put(item)

    writer = threading.Thread(target=write)
    writer.start()
    items = []
    async with asyncio.timeout(30):
        while taken := await inbox.take():
            items += taken
    assert items == [1, 2]
    writer.join()


def test_a_forked_child_gets_its_own_thread(host: EngineHost) -> None:
    host.call(where())
    child = os.fork()
    if child == 0:
        os._exit(0 if host.call(where()) == "chancellor-engines" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
