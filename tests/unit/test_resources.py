"""What is in use is read once for all that ask at the same time, and not on the loop."""

import asyncio
import threading
import time

import pytest

from chancellor import gpus, resources


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that have read the system; there is no reading yet, and one takes a moment."""
    seen: list[int] = []

    def read() -> None:
        seen.append(threading.get_ident())
        time.sleep(0.05)

    monkeypatch.setattr(resources, "_latest", None)
    monkeypatch.setattr(resources, "_FRESH_S", 60.0)  # on a busy machine the next lines take a while
    monkeypatch.setattr(gpus, "read", read)
    return seen


def test_of_all_that_ask_at_once_one_reads_in_a_thread(readers: list[int]) -> None:
    async def ask() -> list[resources.Usage]:
        return await asyncio.gather(*(resources.ameasure() for _ in range(100)))

    usages = asyncio.run(ask())
    assert len(set(usages)) == len(readers) == 1
    assert usages[0].process_memory_mib
    assert readers[0] != threading.get_ident()
    assert resources.measure() is usages[0]


def test_a_reading_goes_on_for_the_others_when_who_began_it_is_cancelled(readers: list[int]) -> None:
    async def ask() -> resources.Usage:
        first = asyncio.ensure_future(resources.ameasure())
        others = asyncio.ensure_future(resources.ameasure())
        await asyncio.sleep(0.01)
        first.cancel()
        return await others

    assert asyncio.run(ask()).process_memory_mib
    assert len(readers) == 1


def test_a_reading_that_fails_is_tried_again(readers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> resources.Usage:
        with monkeypatch.context() as broken:
            broken.setattr(gpus, "read", _fail)
            with pytest.raises(OSError, match="gone"):
                await resources.ameasure()
        return await resources.ameasure()

    assert asyncio.run(ask()).process_memory_mib
    assert len(readers) == 1


def _fail() -> None:
    raise OSError("gone")
