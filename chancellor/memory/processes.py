"""What running processes hold on a device."""

from collections.abc import Iterable

import psutil

from chancellor import gpus

__all__ = ["measure"]


def measure(process_ids: Iterable[int], device: str) -> int | None:
    """Return the bytes that these processes and all below them hold now; None where nobody tells.

    On a CPU these are proportional set sizes: a page that several processes map, such as of a library or of memory that
    ranks share, counts once in their sum, where resident sizes count it for each, and unique sizes for none.

    Args:
        process_ids: those that have ended count nothing.
        device: "cpu", or "cuda:0" and so on by the order of the visible GPUs. A driver does not tell of processes in
            another container.
    """
    processes = _with_children(process_ids)
    if device.startswith("cuda"):
        held = gpus.process_memory(int(device.partition(":")[2] or 0))
        found = [held[pid] for pid in processes if pid in held]
    else:
        found = [size for process in processes.values() if (size := _resident(process)) is not None]
    return sum(found) if found else None


def _with_children(process_ids: Iterable[int]) -> dict[int, psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid in process_ids:
        try:
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.Error:
            continue
    return found


def _resident(process: psutil.Process) -> int | None:
    try:
        pss = getattr(process.memory_full_info(), "pss", 0)
        if pss:
            return int(pss)
    except psutil.Error:
        pass  # of another user: how it shares its pages is a secret, their number is not
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return None
