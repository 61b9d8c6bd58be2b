"""Watches memory, GPUs and the engine while a segment runs, from a thread of its own."""

import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from chancellor import gpus
from chancellor.bench.targets.base import Target
from chancellor.engines.base import EngineStats
from chancellor.resources import ProcessTree

__all__ = ["Sampler"]

PERIOD_S: Final = 1.0
"""Seldom, as a look takes a core from the engine's threads, which wait for one another.
Batch sizes and the KV cache's use are counted by the engine itself, at every step."""


class Sampler:
    """Use it as a context manager around a segment; afterwards `figures` has what was seen."""

    def __init__(self, target: Target, period_s: float = PERIOD_S) -> None:
        self._target, self._period_s = target, period_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="chancellor-sampler", daemon=True)
        processes = target.processes()
        self._tree = None if processes is None else ProcessTree(processes)
        self._memory: list[float] = []
        self._gpu_memory: list[float] = []
        self._gpu_utilization: list[float] = []
        self._kv_cache: list[float] = []
        self._running: list[int] = []
        self._counted = False
        self._before: EngineStats | None = None
        self._after: EngineStats | None = None
        self._cpu: list[float | None] = []
        self._energy: list[float | None] = []
        self._times: list[float] = []

    def __enter__(self) -> Self:
        self._before = self._target.stats()
        self._counted = self._target.peaks() is not None  # from here on
        self._mark()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_clock()
        self._done.set()
        self._thread.join()
        self._look()
        self._after = self._target.stats()
        if (peaks := self._target.peaks()) is not None:
            # The engine has seen every step; looking now and then has not.
            self._running.append(peaks[0])
            if peaks[1] is not None:
                self._kv_cache.append(peaks[1])

    def stop_clock(self) -> None:
        """Take the last reading of processor time and energy; the first call counts."""
        if len(self._times) == 1:
            self._mark()

    def _mark(self) -> None:
        reading = gpus.read() if self._tree is not None else None
        self._times.append(time.perf_counter())
        self._cpu.append(self._tree.cpu_s() if self._tree is not None else None)
        self._energy.append(reading.energy_j if reading else None)

    def _watch(self) -> None:
        while not self._done.wait(self._period_s):
            self._look()

    def _look(self) -> None:
        if (stats := self._target.stats()) is not None and not self._counted:
            self._running.append(stats.running)
            if stats.kv_cache_usage is not None:
                self._kv_cache.append(stats.kv_cache_usage)
        if self._tree is None:  # its machine is not ours to read
            return
        if (memory := self._tree.memory_mib()) is not None:
            self._memory.append(memory)
        if (reading := gpus.read()) is not None:
            if reading.memory_mib is not None:
                self._gpu_memory.append(reading.memory_mib)
            if reading.utilization is not None:
                self._gpu_utilization.append(reading.utilization)

    def figures(self) -> dict[str, Any]:
        """Return the fields of a Segment that come from watching."""
        return {
            "peak_running": max(self._running, default=None),
            "kv_cache_usage": max(self._kv_cache, default=None),
            "prefix_cache_queries": self._grown("prefix_cache_queries"),
            "prefix_cache_hits": self._grown("prefix_cache_hits"),
            "preemptions": self._grown("preemptions"),
            "cpu_utilization": self._cpu_utilization(),
            "process_memory_mib": max(self._memory, default=None),
            "gpu_memory_mib": max(self._gpu_memory, default=None),
            "gpu_utilization": (
                sum(self._gpu_utilization) / len(self._gpu_utilization) if self._gpu_utilization else None
            ),
            "gpu_energy_j": _difference(self._energy),
        }

    def _cpu_utilization(self) -> float | None:
        used = _difference(self._cpu)
        elapsed = self._times[-1] - self._times[0] if self._times else 0.0  # interrupted before it began
        return used / elapsed if used is not None and used >= 0 and elapsed > 0 else None

    def _grown(self, counter: str) -> int | None:
        before, after = getattr(self._before, counter, None), getattr(self._after, counter, None)
        # A counter that went down belongs to an engine that was started anew.
        return None if before is None or after is None or after < before else after - before


def _difference(values: list[float | None]) -> float | None:
    first, last = (values[0], values[-1]) if values else (None, None)
    return None if first is None or last is None else last - first
