"""Runs that begin together go on in groups."""

import asyncio
import gc
import sys
import weakref

import pytest

from chancellor.nodes import complexity_node
from chancellor.nodes.turnstile import _EVERY_S, _GROUP, _Turnstile, _turnstiles, turnstile

QUESTION = {"messages": [{"role": "user", "content": "What is two plus two?"}]}


async def through(moments: list[float]) -> None:
    await turnstile()
    moments.append(asyncio.get_running_loop().time())


def waits() -> bool:
    """Go through, or come to a place where one waits."""
    entering = turnstile()
    try:
        entering.send(None)
    except StopIteration:
        return False
    entering.close()
    return True


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often a next group was let in."""
    seen: list[None] = []
    real = _Turnstile._next

    def noted(own: _Turnstile) -> None:
        seen.append(None)
        real(own)

    monkeypatch.setattr(_Turnstile, "_next", noted)
    return seen


async def test_one_after_the_other_never_wait() -> None:
    assert not any(waits() for _ in range(_GROUP))


async def test_many_at_once_go_on_in_groups(rounds: list[None]) -> None:
    moments: list[float] = []
    groups: list[int] = []

    async def run() -> None:
        await through(moments)
        groups.append(len(rounds))

    await asyncio.gather(*(run() for _ in range(5 * _GROUP)))
    assert groups == [group for group in range(5) for _ in range(_GROUP)]
    assert moments[-1] - moments[0] >= 4 * _EVERY_S * 0.9


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next group is let in by hand: a busy machine may be slow in what comes before."""
    monkeypatch.setattr(sys.modules[turnstile.__module__], "_EVERY_S", 60.0)


def let_in() -> None:
    _turnstiles[asyncio.get_running_loop()]._next()


@pytest.mark.usefixtures("by_hand")
async def test_who_is_cancelled_takes_nobodys_turn() -> None:
    moments: list[float] = []
    first = [asyncio.create_task(through(moments)) for _ in range(_GROUP)]
    cancelled = [asyncio.create_task(through(moments)) for _ in range(10 * _GROUP)]
    last = asyncio.create_task(through(moments))
    await asyncio.gather(*first)
    for task in cancelled:
        task.cancel()
    let_in()
    async with asyncio.timeout(30):
        await last
    assert len(moments) == _GROUP + 1


def test_each_loop_has_its_own() -> None:
    async def fill() -> bool:
        return any(waits() for _ in range(_GROUP))

    assert not any(asyncio.run(fill()) for _ in range(3))


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


@pytest.mark.usefixtures("by_hand")
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
    for _ in range(2):
        let_in()
    await asyncio.gather(*runs)
