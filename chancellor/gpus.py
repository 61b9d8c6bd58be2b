"""The GPUs that this process may use, read from NVML: engines are other processes, so torch's figures would be ours."""

import os
from functools import cache
from typing import Any, Final, NamedTuple

__all__ = ["Gpu", "Memory", "Reading", "list_gpus", "memories", "process_memory", "read"]

_MIB: Final = 2**20


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    memory_mib: float
    driver: str | None


class Memory(NamedTuple):
    """Memory of one GPU, in bytes."""

    total: int
    free: int


class Reading(NamedTuple):
    """All visible GPUs at one moment. Each figure is None where the driver does not tell it."""

    memory_mib: float | None
    """Memory in use, by whomever."""
    utilization: float | None
    """Mean share of the last moments in which a kernel ran, from 0 to 1."""
    energy_j: float | None
    """Energy since the driver was loaded, in joules: the difference of two readings counts."""


def list_gpus() -> list[Gpu]:
    """Return the visible GPUs; none without NVML."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        return [
            Gpu(
                _text(nvml.nvmlDeviceGetName(handle)),
                round(int(nvml.nvmlDeviceGetMemoryInfo(handle).total) / _MIB, 1),
                driver,
            )
            for handle in _visible(nvml)
        ]
    except nvml.NVMLError:
        return []


def memories() -> list[Memory]:
    """Return the memory of each visible GPU; none without NVML."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        found = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in _visible(nvml)]
    except nvml.NVMLError:
        return []
    return [Memory(int(memory.total), int(memory.free)) for memory in found]


def process_memory(index: int) -> dict[int, int]:
    """Return the bytes that each process holds on a visible GPU, by its id; none where the driver does not tell."""
    nvml = _nvml()
    if nvml is None:
        return {}
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(_visible(nvml)[index])
    except (nvml.NVMLError, IndexError):
        return {}
    return {int(process.pid): int(process.usedGpuMemory) for process in running if process.usedGpuMemory}


def read() -> Reading | None:
    """Return what the visible GPUs do now, or None where there are none."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        handles = _visible(nvml)
    except nvml.NVMLError:
        return None
    if not handles:
        return None

    def summed(figure: Any) -> float | None:
        try:
            return float(sum(figure(handle) for handle in handles))
        except nvml.NVMLError:
            return None

    memory = summed(lambda handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))
    busy = summed(lambda handle: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
    energy = summed(lambda handle: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))  # millijoules
    return Reading(
        None if memory is None else round(memory / _MIB, 1),
        None if busy is None else round(busy / 100 / len(handles), 3),
        None if energy is None else energy / 1000,
    )


def _visible(nvml: Any) -> list[Any]:
    """Return NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, by index or UUID."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return every
    chosen: list[Any] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.isdigit() and int(name) < len(every):
            chosen.append(every[int(name)])
        elif found := [handle for handle in every if name and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]:
            chosen.append(found[0])
        else:  # CUDA ignores everything from the first name it does not know
            break
    return chosen


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@cache
def _nvml() -> Any | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no driver, no device: there is nothing to read
        return None
    return pynvml
