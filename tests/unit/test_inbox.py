"""When a caller's loop is woken for what the engines' thread has for it."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from chancellor.engines import inbox as module
from chancellor.engines.inbox import End, Inbox


async def elsewhere(inboxes: Sequence[Inbox[int]], item: int | End) -> None:
    """Write from another thread, as engines do."""

    def write() -> None:
        for inbox in inboxes:
            inbox.put(item)

    await asyncio.to_thread(write)


async def test_those_that_are_answered_together_are_woken_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Edges, "longest_s", 60.0)  # this machine may be busy
    monkeypatch.setattr(module, "_SLOW_S", 60.0)
    inboxes = [Inbox[int](asyncio.get_running_loop()) for _ in range(100)]
    under_way, most = 0, 0

    async def read(inbox: Inbox[int]) -> list[int]:
        nonlocal under_way, most
        items = await inbox.take()
        under_way += 1
        most = max(most, under_way)
        for _ in range(module._EDGE_TURNS - 2):
            await asyncio.sleep(0)
        under_way -= 1
        return items + await inbox.take()

    readers = [asyncio.create_task(read(inbox)) for inbox in inboxes]
    await asyncio.sleep(0)
    all_written = threading.Event()

    def write() -> None:
        for number, inbox in enumerate(inboxes):
            inbox.put(number)
            inbox.put(End())
        all_written.set()

    threading.Thread(target=write).start()
    assert all_written.wait(30)  # the loop has not run meanwhile
    async with asyncio.timeout(30):
        assert await asyncio.gather(*readers) == [[number] for number in range(100)]
    assert 2 <= most <= module._EDGES


async def test_a_busy_loop_rests_from_middles_and_not_from_beginnings_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST", 1e6)
    monkeypatch.setattr(module, "_LONGEST_REST_S", 60.0)
    loop = asyncio.get_running_loop()
    streams = [Inbox[int](loop) for _ in range(2)]
    got: list[list[list[int]]] = [[], []]

    async def read(number: int) -> None:
        while taken := await streams[number].take():
            got[number].append(taken)
            time.sleep(2 * module._BUSY_S)  # noqa: ASYNC251 - it is busy

    readers = [asyncio.create_task(read(number)) for number in range(2)]

    async with asyncio.timeout(20):
        for item in (1, 2, 3, 4):  # the second makes it busy
            while any(stream._waiter is None or stream._waiter.done() for stream in streams):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            for stream in streams:  # on this thread, so that none is woken before the other
                stream.put(item)
        await asyncio.sleep(0.1)
        assert got == [[[1], [2]], [[1], [2]]]
        another = Inbox[int](loop)
        beginning = asyncio.create_task(another.take())
        await asyncio.sleep(0)
        await elsewhere([another], 5)
        assert await beginning == [5]
        assert got == [[[1], [2]], [[1], [2]]]
        await elsewhere(streams, End())
        await asyncio.gather(*readers)
    assert got == [[[1], [2], [3, 4]], [[1], [2], [3, 4]]]


def begun(number: int) -> list[Inbox[int]]:
    """Return inboxes whose first item has come and gone."""
    inboxes = [Inbox[int](asyncio.get_running_loop()) for _ in range(number)]
    for inbox in inboxes:
        inbox._begun = True
    return inboxes


async def test_pieces_come_to_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Middles, "longest_s", 60.0)  # this machine may be busy
    monkeypatch.setattr(module, "_SLOW_S", 60.0)
    inboxes = begun(100)
    woken: list[int] = []
    turn = 0

    async def count() -> None:
        nonlocal turn
        while len(woken) < 100:
            turn += 1
            await asyncio.sleep(0)

    async def read(inbox: Inbox[int]) -> None:
        await inbox.take()
        woken.append(turn)

    readers = [asyncio.create_task(read(inbox)) for inbox in inboxes]
    await asyncio.sleep(0)
    for inbox in inboxes:
        inbox.put(1)
    async with asyncio.timeout(30):
        await asyncio.gather(count(), *readers)
    groups = Counter(woken)
    assert max(groups.values()) <= module._MIDDLES
    assert min(later - earlier for earlier, later in pairwise(sorted(groups))) >= module._MIDDLE_TURNS


async def test_pieces_wait_for_answers_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EDGE_TURNS", 500)  # they take their time, however long a turn is
    monkeypatch.setattr(module._Edges, "longest_s", 60.0)
    monkeypatch.setattr(module, "_LONGEST_REST_S", 60.0)
    (stream,), (ending,) = begun(1), begun(1)
    came: list[str] = []

    async def read(name: str, inbox: Inbox[int]) -> None:
        while await inbox.take():
            came.append(name)
        came.append(f"{name} ends")

    readers = [asyncio.create_task(read("stream", stream)), asyncio.create_task(read("ending", ending))]
    await asyncio.sleep(0)
    stream._bells.middles.woke_at = time.perf_counter()
    ending.put(End())
    stream.put(1)
    for _ in range(100):
        await asyncio.sleep(0)
    assert came == ["ending ends"]
    async with asyncio.timeout(30):
        while "stream" not in came:  # noqa: ASYNC110 - readers tell nobody
            await asyncio.sleep(0.01)
        stream.put(End())
        await asyncio.gather(*readers)


async def test_pieces_come_though_answers_never_cease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_REST_S", 0.05)
    monkeypatch.setattr(module._Edges, "busy", True)
    streams = begun(200)
    streams[0]._bells.middles.woke_at = began = time.perf_counter()
    came: list[float] = []

    async def read(stream: Inbox[int]) -> None:
        assert await stream.take() == [1]
        came.append(time.perf_counter() - began)

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    await asyncio.sleep(0)
    for stream in streams:
        stream.put(1)
    async with asyncio.timeout(30):
        await asyncio.gather(*readers)
    assert came[0] >= 0.05
    assert came[24] < came[25] - 0.01  # an eighth of them at a time


async def test_a_slow_loop_gets_more_at_a_time() -> None:
    """With turns of 5 ms, 24 of them for four answers each would take two seconds for 64."""
    streams = begun(64)
    readers = [asyncio.create_task(stream.take()) for stream in streams]
    turns: list[int] = []
    slow = asyncio.create_task(slowly(turns))
    await asyncio.sleep(0)
    for stream in streams:
        stream.put(End())
    async with asyncio.timeout(30):
        assert await asyncio.gather(*readers) == [[]] * 64
    slow.cancel()
    assert len(turns) < 160  # and not 384, however long each is on this machine


async def slowly(turns: list[int]) -> None:
    while True:
        time.sleep(0.005)  # noqa: ASYNC251 - other work on the same loop
        turns.append(1)
        await asyncio.sleep(0)


async def test_a_loop_that_has_something_else_to_do_is_not_waited_for() -> None:
    inboxes = [Inbox[int](asyncio.get_running_loop()) for _ in range(64)]
    turns: list[int] = []

    async def work() -> None:
        while True:
            time.sleep(0.002)  # noqa: ASYNC251 - it holds the loop up, as this is about
            turns.append(1)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(inbox.take()) for inbox in inboxes]
    await asyncio.sleep(0)
    working = asyncio.create_task(work())
    await elsewhere(inboxes, End())
    turns.clear()
    await asyncio.gather(*readers)
    working.cancel()
    assert len(turns) < 64 / module._EDGES * module._EDGE_TURNS / 2


async def test_one_stream_gets_each_piece_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST", 1e6)
    monkeypatch.setattr(module, "_LONGEST_REST_S", 60.0)
    stream = Inbox[int](asyncio.get_running_loop())
    moments = []

    async def write() -> None:
        for number in range(5):
            await elsewhere([stream], number)
            await asyncio.sleep(0.02)
        await elsewhere([stream], End())

    writer = asyncio.create_task(write())
    async with asyncio.timeout(30):
        while taken := await stream.take():
            moments.append(taken)
            time.sleep(2 * module._BUSY_S)  # noqa: ASYNC251 - it is busy
    await writer
    assert moments == [[0], [1], [2], [3], [4]]


async def test_a_loop_with_little_to_do_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST", 1e6)
    monkeypatch.setattr(module, "_LONGEST_REST_S", 60.0)
    monkeypatch.setattr(module, "_BUSY_S", 50.0)  # this machine may stand still
    streams = [Inbox[int](asyncio.get_running_loop()) for _ in range(4)]
    arrived: list[float] = []

    async def read(stream: Inbox[int]) -> None:
        while await stream.take():
            arrived.append(time.perf_counter())

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    async with asyncio.timeout(30):
        for item in (1, 2, 3, End()):
            await asyncio.sleep(0.01)
            await elsewhere(streams, item)
        await asyncio.gather(*readers)
    assert len(arrived) == 12
    assert max(later - earlier for earlier, later in pairwise(arrived)) < 30.0
