"""Memory and utilisation of this process, its engines, and the GPUs. None stands for what cannot be read."""

import asyncio
import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

import psutil

from chancellor import gpus

__all__ = ["ProcessTree", "Usage", "ameasure", "give_back", "measure"]

_MIB: Final = 2**20
_FRESH_S: Final = 1.0
_lock = threading.Lock()
_latest: tuple[float, "Usage"] | None = None
_readers: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, "asyncio.Task[Usage]"]] = (
    weakref.WeakKeyDictionary()
)


class Usage(NamedTuple):
    """What is in use now."""

    process_memory_mib: float | None
    """Resident memory of this process and its descendants, in MiB; memory they share counts for each."""
    gpu_memory_mib: float | None
    """Memory in use on the visible GPUs by whomever, in MiB."""
    gpu_utilization: float | None
    """Mean share of time that the visible GPUs were busy, from 0 to 1."""


def measure() -> Usage:
    """Return what is in use, at most a second old. To read it takes milliseconds."""
    global _latest
    with _lock:
        if (usage := _fresh()) is None:
            reading = gpus.read()
            usage = Usage(
                ProcessTree().memory_mib(),
                reading.memory_mib if reading else None,
                reading.utilization if reading else None,
            )
            _latest = time.monotonic(), usage
        return usage


async def ameasure() -> Usage:
    """Like `measure`, without blocking the loop; of all that ask at once, one reads."""
    if (usage := _fresh()) is not None:
        return usage
    loop = asyncio.get_running_loop()
    if (reader := _readers.get(loop)) is None:
        reader = _readers[loop] = loop.create_task(asyncio.to_thread(measure))
        reader.add_done_callback(lambda _: _readers.pop(loop, None))  # it holds the loop
    return await asyncio.shield(reader)


def _fresh() -> Usage | None:
    latest = _latest
    return latest[1] if latest is not None and time.monotonic() - latest[0] <= _FRESH_S else None


def give_back() -> None:
    """Free what objects that nobody needs any more hold, and return it to the system: an engine leaves 20 MiB and more.

    Takes a tenth of a second and more. Python's collector comes by too seldom for objects that are few and large, and
    glibc keeps what threads that have ended had.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


class ProcessTree:
    """This process and others as they were when this was made: finding descendants reads all of /proc."""

    def __init__(self, others: Iterable[int] | None = None) -> None:
        """Take the ids of the other processes; None takes all descendants."""
        self._processes = []
        try:
            process = psutil.Process()
            self._processes.append(process)
            if others is None:
                self._processes += process.children(recursive=True)
        except psutil.Error:
            pass
        for pid in others or ():
            try:
                self._processes.append(psutil.Process(pid))
            except psutil.Error:
                continue

    def memory_mib(self) -> float | None:
        """Return the resident memory of those that live, in MiB."""
        sizes = []
        for process in self._processes:
            try:
                sizes.append(process.memory_info().rss)
            except psutil.Error:
                continue
        return round(sum(sizes) / _MIB, 1) if sizes else None

    def cpu_s(self) -> float | None:
        """Return the processor time that those that live have used, in seconds."""
        times = []
        for process in self._processes:
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            times.append(used.user + used.system)
        return sum(times) if times else None
