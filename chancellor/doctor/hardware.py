"""The CPU: what it computes with, and how much of it there is."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from chancellor.doctor.finding import Finding, error, ok, warning
from chancellor.engines.hardware import cpu_has_bfloat16

__all__ = ["cores", "cpu_time", "features"]


def features(*, on_gpu: bool) -> Iterator[Finding]:
    """Look at the instruction sets that vLLM's kernels need, and at the compute type that follows.

    Args:
        on_gpu: whether engines run on GPUs, so that the CPU does not matter much.
    """
    from chancellor.bench.machine import Machine

    machine = Machine.this()
    names = ", ".join(machine.features) or "none of AVX2, AVX512, AMX"
    if on_gpu:
        yield ok("cpu", f"{machine.cpu}; the GPU computes")
        return
    if platform.machine() in ("x86_64", "AMD64") and not {"avx2", "avx512f"} & set(machine.features):
        message = f"{machine.cpu} has neither AVX2 nor AVX512: vLLM's CPU build ends with an illegal instruction"
        yield error("cpu", message, 'Set kind = "transformers" under [models.engine], or use another machine')
        return
    yield ok("cpu", f"{machine.cpu}: {names}")
    if cpu_has_bfloat16():
        yield ok("dtype", "the compute type is bfloat16, which this CPU multiplies itself")
    else:
        yield ok("dtype", "the compute type is float32: in bfloat16 this CPU would be slow")


def cores(*, on_gpu: bool, proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[Finding]:
    """Look at how many CPUs engines may use, and at the limit of CPU time that a container sets.

    Args:
        on_gpu: whether engines run on GPUs.
        proc: where the names of the control groups are read.
        root: where the control groups are mounted.
    """
    allowed = sorted(os.sched_getaffinity(0))
    quota = cpu_time(proc, root)
    said = f"{len(allowed)} of {os.cpu_count()} CPUs may be used"
    if quota is not None and quota < len(allowed):
        few = max(1, int(quota))
        message = f"{said}, but a control group gives the time of {quota:g}: more threads than that wait for each other"
        fix = f"taskset -c {','.join(map(str, allowed[:few]))} chancellor ... (or give the container more CPUs)"
        yield warning("cores", message, fix)
    elif on_gpu and len(allowed) < 2:
        yield warning("cores", f"{said}: the engine's process and yours share it", "Give the process at least 2 CPUs")
    else:
        yield ok("cores", said)


def cpu_time(proc: Path, root: Path) -> float | None:
    """Return how many CPUs' time the control groups of this process leave it, or None for all."""
    found = []
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            tops = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [root / controllers, root / "cpu"]
        else:
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            while True:
                if (share := _share(folder)) is not None:
                    found.append(share)
                if folder == top or top not in folder.parents:
                    break
                folder = folder.parent
    return min(found, default=None)


def _share(folder: Path) -> float | None:
    """Return the limit of one group, of version 2 or 1."""
    try:
        words = (folder / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            words = [
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            ]
        except OSError:
            return None
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
