"""The GPUs: whether torch can use them, what they can compute, and whose their memory is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chancellor.doctor.finding import Finding, error, gib, ok, warning
from chancellor.doctor.probes import Facts
from chancellor.doctor.versions import REPAIR_CPU, REPAIR_CUDA
from chancellor.gpus import Gpu

__all__ = ["devices", "usable"]

_BFLOAT16: Final = (8, 0)
_FLOAT8: Final = (8, 9)
_DEVICE: Final = Path("/dev/nvidiactl")


def usable(
    probes: Mapping[str, Facts], listed: Sequence[Gpu], *, cuda_vllm: bool, device: Path = _DEVICE
) -> Iterator[Finding]:
    """Look at whether there are GPUs, and whether torch sees the same ones.

    Args:
        probes: what the heavy packages said.
        listed: the GPUs that NVML shows.
        cuda_vllm: whether vLLM's CUDA build is installed.
        device: what is there wherever NVIDIA's driver runs.
    """
    facts = probes.get("torch", {})
    seen = facts.get("gpus", [])
    names = ", ".join(f"{gpu.name} ({gib(gpu.memory_mib * 2**20)}, driver {gpu.driver})" for gpu in listed)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed and "version" in facts and facts["cuda"] is None:
        fix = f"{REPAIR_CUDA} (to stay on the CPU: export CUDA_VISIBLE_DEVICES=)"
        yield error("gpus", f"{names}: torch {facts['version']} is built without CUDA and cannot use it", fix)
    elif facts.get("cuda") is not None and not seen and (listed or cuda_vllm):
        said = facts.get("cuda_error") or next(iter(facts.get("warnings", ())), None)
        if listed:
            message = f"{names}: torch {facts['version']} cannot use it: {said or 'it sees no GPU'}"
            yield error("gpus", message, "Install a driver that is new enough for CUDA " + str(facts["cuda"]))
        elif hidden is not None:
            yield error(
                "gpus", f"CUDA_VISIBLE_DEVICES is {hidden!r}, which leaves no GPU", "unset CUDA_VISIBLE_DEVICES"
            )
        else:
            message = f"vLLM and torch are built for CUDA, and there is no GPU that works: {said or 'none was found'}"
            yield error("gpus", message, f"In a container, start it with --gpus all; without a GPU: {REPAIR_CPU}")
    elif seen and not listed:
        message = f"torch sees {len(seen)} GPUs, and NVML does not answer: memory cannot be measured"
        yield warning("gpus", message, "pip install nvidia-ml-py")
    elif not listed and device.exists() and hidden is None:
        message = "NVIDIA's driver is here, but its GPUs cannot be seen"
        yield warning("gpus", message, "pip install nvidia-ml-py; in a container, start it with --gpus all")
    elif listed:
        yield ok("gpus", names)
    else:
        yield ok("gpus", "no NVIDIA GPU: models run on the CPU")


def devices(probes: Mapping[str, Facts], share: float) -> Iterator[Finding]:
    """Look at each GPU that torch can use.

    Args:
        probes: what the heavy packages said.
        share: largest share of a GPU's memory that an entry of the catalog asks for.
    """
    facts = probes.get("torch", {})
    for index, gpu in enumerate(facts.get("gpus", [])):
        yield from _capability(index, gpu)
        free, total = gpu["free"], gpu["total"]
        if free >= share * total:
            yield ok("gpu-memory", f"GPU {index}: {gib(free)} of {gib(total)} are free")
            continue
        message = f"GPU {index}: {gib(free)} of {gib(total)} are free, and an engine asks for {share:.0%} of all"
        room = max(0.05, int(free / total * 20) / 20)
        fix = f"nvidia-smi shows who has it; or set gpu_memory_utilization = {room:g} under [models.engine]"
        yield warning("gpu-memory", message, fix)
    for line in facts.get("warnings", ()) if facts.get("gpus") else ():
        yield warning("gpus", f"torch says: {line}", REPAIR_CUDA)


def _capability(index: int, gpu: Mapping[str, Any]) -> Iterator[Finding]:
    major, minor = gpu["capability"]
    here = f"GPU {index}: {gpu['name']} has compute capability {major}.{minor}"
    if (major, minor) < _BFLOAT16:
        message = f"{here}: no bfloat16 (8.0) and no float8 (8.9)"
        yield warning("capability", message, 'Set dtype = "float16" under [models.engine], and use int8 or int4wo')
    elif (major, minor) < _FLOAT8:
        yield warning("capability", f"{here}: no float8 (8.9)", "Use the scheme int8 or int4wo, not fp8 or int4fp8")
    else:
        yield ok("capability", f"{here}: bfloat16 and float8")
