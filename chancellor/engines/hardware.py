"""What this machine computes with."""

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

from chancellor.errors import MissingDependencyError
from chancellor.gpus import list_gpus

__all__ = ["cpu_has_bfloat16", "cpu_ids", "default_dtype", "default_frontend", "gpu_count", "why_not_compile"]


@cache
def gpu_count() -> int:
    """Return the number of visible CUDA devices, without initialising CUDA in this process."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError.of("torch") from error
    return int(torch.cuda.device_count()) if torch.version.cuda else 0


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; else it is slow, and compiled code has answered wrongly."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def default_dtype() -> str:
    """Return the compute type for engines that name none: bfloat16 where the hardware has it, else float32."""
    return "bfloat16" if gpu_count() > 0 or cpu_has_bfloat16() else "float32"


def default_frontend() -> Literal["thread", "process"]:
    """Return where the front end of engines runs that do not say so. Looks at NVML, and imports nothing heavy."""
    return "process" if list_gpus() else "thread"


def cpu_ids() -> str:
    """Return the CPUs this process may use, as a comma-separated list."""
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))


def why_not_compile(dtype: str) -> tuple[str, str] | None:
    """Return why torch.compile is not to be used on this CPU, and what to do; or None if it may be.

    Args:
        dtype: compute type of the engine.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})", "apt-get install g++ (or leave enforce_eager out)"
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        return f"Python's headers are not in {headers}", "apt-get install python3-dev (or leave enforce_eager out)"
    if dtype == "bfloat16" and not cpu_has_bfloat16():
        reason = "compiled bfloat16 has answered wrongly on CPUs that do not multiply it themselves"
        return reason, 'Set dtype = "float32" under [models.engine], or leave enforce_eager out'
    return None
