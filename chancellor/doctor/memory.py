"""Memory: what is free of it here, and whether each model of the catalog fits."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from chancellor.catalog import ModelSpec
from chancellor.doctor.finding import Finding, error, gib, ok, warning
from chancellor.errors import CheckpointError, MissingDependencyError
from chancellor.memory import Device, Ledger, devices

__all__ = ["fit", "free", "shared", "swap"]

_GIB: Final = 2**30
_LEAST_FREE: Final = 2 * _GIB  # vLLM's processes take most of it with a model of no size
_LEAST_SHARED: Final = _GIB
_SWAPPED: Final = _GIB // 4


def free() -> Iterator[Finding]:
    """Look at the memory that is free, within the limits of the control groups."""
    machine = psutil.virtual_memory()
    for device in devices():
        said = f"{device.name}: {gib(device.free)} of {gib(device.total)} are free"
        limited = device.name == "cpu" and device.total < machine.total
        if limited:
            said += f" (a control group's limit; the machine has {gib(machine.total)})"
        if device.free >= _LEAST_FREE:
            yield ok("memory", said)
        elif limited:
            fix = "Give the container more memory, e.g. docker run --memory=8g"
            yield warning("memory", f"{said}, which is hardly enough for any engine", fix)
        else:
            fix = "End programs that take much of it: ps aux --sort=-rss | head"
            yield warning("memory", f"{said}, which is hardly enough for any engine", fix)


def swap() -> Iterator[Finding]:
    """Look at whether the machine is swapping: weights that were swapped out make every token wait."""
    used = psutil.swap_memory().used
    if used > _SWAPPED:
        fix = "End programs that take much memory: ps aux --sort=-rss | head; then: swapoff -a && swapon -a"
        yield warning("swap", f"{gib(used)} of swap are in use, which makes engines slow", fix)
    else:
        yield ok("swap", "no swap is in use" if not used else f"only {gib(used)} of swap are in use")


def shared(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - that is where it is
    """Look at the shared memory, through which the ranks of a model talk."""
    fix = "In a container: docker run --ipc=host, or --shm-size=8g; else: mount -o remount,size=8G /dev/shm"
    if not folder.is_dir():
        yield warning("shared-memory", f"There is no {folder}: models split over several devices will not start", fix)
        return
    left = shutil.disk_usage(folder).free
    if left < _LEAST_SHARED:
        message = f"{folder} has {left / 2**20:,.0f} MiB left; models split over several devices need more"
        yield warning("shared-memory", message, fix)
    else:
        yield ok("shared-memory", f"{folder} has {gib(left)} left")


def fit(spec: ModelSpec) -> Iterator[Finding]:
    """Look at whether the entry's engine will have the memory that it needs."""
    if spec.engine.kind == "openai":
        return
    try:
        need = Ledger().expected(spec)
    except (CheckpointError, MissingDependencyError):
        return  # said by the check of its source
    here = [device for device in devices() if device.name in need.devices]
    if len(here) < len(need.devices):
        message = f"it is to be split over {len(need.devices)} GPUs, and there are {len(devices())}"
        yield error("memory", message, f"Set tensor_parallel_size = {len(here) or 1} under [models.engine]")
        return
    yield _fit(need.least, here)


def _fit(least: int, here: Sequence[Device]) -> Finding:
    said = f"it needs about {gib(least)}{' on each GPU' if len(here) > 1 else ''}"
    smaller = 'give it a scheme ("int8", "int4wo"), or lower max_model_len under [models.engine]'
    budget, left = min(device.budget for device in here), min(device.free for device in here)
    if least > budget:
        return error("memory", f"{said}, and engines may take {gib(budget)} here", f"Take a smaller model, {smaller}")
    if least > left:
        return warning("memory", f"{said}, and {gib(left)} are free now", f"End what takes the memory, or {smaller}")
    return ok("memory", f"{said}, and {gib(left)} are free")
