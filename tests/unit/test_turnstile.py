"""Runs that begin together go on in groups."""

import asyncio
import gc
import time
import weakref
from collections import Counter

from chancellor.nodes import complexity_node
from chancellor.nodes.turnstile import _EVERY_S, _GROUP, turnstile

QUESTION = {"messages": [{"role": "user", "content": "What is two plus two?"}]}


async def through(moments: list[float]) -> None:
    await turnstile()
    moments.append(asyncio.get_running_loop().time())


async def test_one_after_the_other_never_wait() -> None:
    began = time.perf_counter()
    for _ in range(_GROUP):
        await turnstile()
    assert time.perf_counter() - began < _EVERY_S


async def test_many_at_once_go_on_in_groups() -> None:
    moments: list[float] = []
    await asyncio.gather(*(through(moments) for _ in range(5 * _GROUP)))
    groups = Counter(int((moment - moments[0]) / (_EVERY_S / 2)) for moment in moments)
    assert len(moments) == 5 * _GROUP
    assert max(groups.values()) <= _GROUP
    assert moments[-1] - moments[0] >= 4 * _EVERY_S * 0.9


async def test_who_is_cancelled_takes_nobodys_turn() -> None:
    moments: list[float] = []
    first = [asyncio.create_task(through(moments)) for _ in range(_GROUP)]
    cancelled = [asyncio.create_task(through(moments)) for _ in range(10 * _GROUP)]
    last = asyncio.create_task(through(moments))
    await asyncio.gather(*first)
    for task in cancelled:
        task.cancel()
    await last
    assert len(moments) == _GROUP + 1
    assert moments[-1] - moments[0] < 4 * _EVERY_S


def test_each_loop_has_its_own() -> None:
    async def fill() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(turnstile() for _ in range(_GROUP)))
        return time.perf_counter() - began

    assert max(asyncio.run(fill()) for _ in range(3)) < _EVERY_S


def test_a_loop_that_ends_in_a_crowd_is_let_go() -> None:
    loop = asyncio.new_event_loop()

    async def crowd() -> None:
        tasks = [asyncio.create_task(turnstile()) for _ in range(3 * _GROUP)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(crowd())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


async def test_the_first_node_uses_it() -> None:
    node, done = complexity_node(), 0

    async def run() -> None:
        nonlocal done
        assert (await node.ainvoke(QUESTION))["complexity"]["level"] == "low"
        done += 1

    runs = [asyncio.create_task(run()) for _ in range(3 * _GROUP)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert done == _GROUP
    await asyncio.gather(*runs)
