"""The devices that engines run on, and their memory."""

import importlib.metadata
from dataclasses import dataclass
from functools import cache

import psutil

from chancellor import gpus
from chancellor.memory import cgroup
from chancellor.settings import settings

__all__ = ["Device", "devices", "gpu_memories", "host_free"]


@dataclass(frozen=True, slots=True)
class Device:
    """A device at one moment, in bytes."""

    name: str
    """ "cpu", "cuda:0", ..."""
    total: int
    """On a CPU the smallest of the memory and the limits of its control groups."""
    free: int
    """What nobody uses now; file cache counts as free."""
    budget: int
    """What all engines together may take."""


def devices(share: float | None = None) -> list[Device]:
    """Return the devices that engines run on, read anew: the visible GPUs, or else the CPU.

    Args:
        share: of each device's total, for the budget; None is CHANCELLOR_MEMORY_SHARE.
    """
    share = settings().memory_share if share is None else share
    if not 0 < share <= 1:
        raise ValueError(f"The share of a device's memory is above 0 and at most 1, not {share}.")
    found = [(f"cuda:{index}", total, free) for index, (total, free) in enumerate(gpu_memories())]
    return [Device(name, total, free, int(share * total)) for name, total, free in found or [_cpu()]]


def gpu_memories() -> list[gpus.Memory]:
    """Return the memory of each GPU that engines run on; none where torch is built for CPUs. Does not import torch."""
    return [] if _torch_is_for_cpus() else gpus.memories()


def host_free() -> int:
    """Return the bytes of the host's memory that may still be taken, whatever the engines run on."""
    return _cpu()[2]


def _cpu() -> tuple[str, int, int]:
    memory, limits = psutil.virtual_memory(), cgroup.limits()
    total = min([memory.total, *(limit.total for limit in limits)])
    free = min([memory.available, *(limit.total - limit.used for limit in limits)])
    return "cpu", total, max(0, free)


@cache
def _torch_is_for_cpus() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
