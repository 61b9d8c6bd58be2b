"""Memory and utilisation of this process, its engines, and the GPUs. None stands for what cannot be read."""

import threading
import time
from functools import cache
from typing import Any, Final, NamedTuple

import psutil

__all__ = ["Usage", "measure", "stale"]

_MIB: Final = 2**20
_FRESH_S: Final = 1.0
_lock = threading.Lock()
_latest: tuple[float, "Usage"] | None = None


class Usage(NamedTuple):
    """What is in use now."""

    process_memory_mib: float | None
    """Resident memory of this process and its descendants, in MiB; memory they share counts for each."""
    gpu_memory_mib: float | None
    """Memory in use on the visible GPUs by whomever, in MiB."""
    gpu_utilization: float | None
    """Mean share of time that the visible GPUs were busy, from 0 to 1."""


def stale() -> bool:
    """Return whether `measure` would read the system, which takes milliseconds and blocks."""
    return _latest is None or time.monotonic() - _latest[0] > _FRESH_S


def measure() -> Usage:
    """Return what is in use, at most a second old."""
    global _latest
    with _lock:
        if _latest is None or stale():
            _latest = time.monotonic(), Usage(_memory(), *_gpus())
        return _latest[1]


def _memory() -> float | None:
    try:
        process = psutil.Process()
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.Error:
        return None
    return round(total / _MIB, 1)


def _gpus() -> tuple[float | None, float | None]:
    nvml = _nvml()
    if nvml is None:
        return None, None
    try:
        devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if not devices:
            return None, None
        used = sum(int(nvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
        busy = sum(int(nvml.nvmlDeviceGetUtilizationRates(device).gpu) for device in devices)
    except nvml.NVMLError:
        return None, None
    return round(used / _MIB, 1), round(busy / 100 / len(devices), 3)


@cache
def _nvml() -> Any | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no driver, no device: there is nothing to read
        return None
    return pynvml
