"""Run as a program: imports the packages it is given, one after the other, and prints a line of JSON for each.

What vLLM is asked is read as JSON from stdin once it is imported: {"architectures": [...], "weights": {entry: {...}}}.
Imports nothing of Chancellor before the packages themselves.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any


def last_line(error: BaseException) -> str:
    """Return the class of an exception, and the last line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


def _torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda, "gpus": []}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            for index in range(torch.cuda.device_count() if torch.version.cuda else 0):
                free, total = torch.cuda.mem_get_info(index)
                capability = torch.cuda.get_device_capability(index)
                name = torch.cuda.get_device_name(index)
                facts["gpus"].append({"name": name, "capability": capability, "free": free, "total": total})
            torch.cuda.is_available()
        except Exception as error:  # noqa: BLE001 - of the driver, in all its forms
            facts["cuda_error"] = last_line(error)
    facts["warnings"] = [line for one in said if (line := " ".join(str(one.message).split()))]
    return facts


def _torchao() -> dict[str, Any]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torchao").addHandler(handler)
    import torchao

    # It also logs each library for other hardware that does not load, which is no fault.
    return {"version": torchao.__version__, "skipped": [line for line in said if line.startswith("Skipping import")]}


def _transformers() -> dict[str, Any]:
    import transformers

    # The package itself imports nearly nothing; these import what engines use.
    classes = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.PreTrainedModel)
    known = [name for name in dir(transformers) if re.search(r"ForCausalLM$|ForConditionalGeneration$|LMHead", name)]
    return {"version": transformers.__version__, "architectures": known, "classes": len(classes)}


def _vllm() -> dict[str, Any]:
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: F401 - what the engine imports
    from vllm.platforms import current_platform

    question = json.load(sys.stdin)
    facts: dict[str, Any] = {"version": vllm.__version__, "device": current_platform.device_type or None}
    parts: dict[str, Callable[[], Any]] = {
        "plugin": _plugin,
        "architectures": lambda: _architectures(question["architectures"]),
        "tool_parsers": lambda: _parsers("vllm.tool_parsers", "ToolParserManager", "tool_parsers"),
        "reasoning_parsers": lambda: _parsers("vllm.reasoning", "ReasoningParserManager", "reasoning_parsers"),
        "weights": lambda: {name: _weights(one) for name, one in question["weights"].items()},
    }
    for name, part in parts.items():
        try:
            facts[name] = part()
        except Exception as error:  # noqa: BLE001 - these are other in each release; vLLM itself works
            facts[f"{name}_error"] = last_line(error)
    return facts


def _plugin() -> bool:
    """Return whether vLLM runs TorchAO's weights by our plug-in, once it has loaded its plug-ins."""
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    loaded = str(get_quantization_config("torchao").__module__).startswith("chancellor.")
    if not loaded:
        import chancellor.quantization.vllm_plugin.config  # noqa: F401 - if it cannot be imported, that is why
    return loaded


def _architectures(names: list[str]) -> dict[str, str | None]:
    """Return for each architecture who runs it: "vllm", "transformers" (inside vLLM), or None.

    "pooling" is for one that makes no text, "until 0.23.0" for one that an older vLLM ran.
    """
    import transformers
    from vllm.model_executor.models import registry

    known, found = set(registry.ModelRegistry.get_supported_archs()), dict[str, str | None]()
    kinds = ("EMBEDDING", "LATE_INTERACTION", "REWARD", "TOKEN_CLASSIFICATION", "SEQUENCE_CLASSIFICATION")
    pooling = {name for kind in kinds for name in getattr(registry, f"_{kind}_MODELS", ())}
    pooling -= {name for kind in ("TEXT_GENERATION", "MULTIMODAL") for name in getattr(registry, f"_{kind}_MODELS", ())}
    for name in names:
        kind = getattr(transformers, name, None)
        compatible = [getattr(kind, check, None) for check in ("is_backend_compatible", "_can_set_attn_implementation")]
        in_transformers = any(check() for check in compatible if callable(check))
        last = getattr(registry, "_PREVIOUSLY_SUPPORTED_MODELS", {}).get(name)
        runs = "vllm" if name in known else f"until {last}" if last else "transformers" if in_transformers else None
        found[name] = "pooling" if name in pooling else runs
    return found


def _parsers(module: str, registry: str, eager: str) -> list[str]:
    import importlib

    manager = getattr(importlib.import_module(module), registry)
    return sorted({*getattr(manager, eager, ()), *getattr(manager, "lazy_parsers", ())})


def _weights(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what would become of a checkpoint's weights: a refusal, or whether vLLM has a kernel for them."""
    import torch
    from torchao.quantization import FqnToConfig
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    from chancellor.quantization.schemes import Scheme
    from chancellor.quantization.vllm_plugin.config import KernelConfig
    from chancellor.quantization.vllm_plugin.formats import Geometry, UnusableWeightError, format_for
    from chancellor.quantization.vllm_plugin.formats.int4 import Int4Format

    try:
        if entry["quantization"] is not None:
            config = KernelConfig.from_config(entry["quantization"]).torchao_config
        else:
            config = Scheme.of(entry["scheme"]).config_for([entry["inputs"]])
        rules = list(config.fqn_to_config.values()) if isinstance(config, FqnToConfig) else [config]
        without = [type(one).__name__ for one in rules if one is not None and format_for(one) is None]
        formats = [found for one in rules if one is not None and (found := format_for(one)) is not None]
        if entry["kernels"] == "torchao":
            return {}
        inputs, outputs = entry["inputs"], entry["outputs"]
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device=entry["device"]))):
            for one in formats:
                try:
                    one.kernel(Geometry(inputs, outputs, inputs, outputs, getattr(torch, entry["dtype"])))
                except UnusableWeightError:
                    raise
                except ValueError as reasons:  # vLLM has none on this machine: the plug-in falls back, but for int4
                    if isinstance(one, Int4Format):
                        return {"refusal": f"No kernel of vLLM's can run these int4 weights here: {reasons}. Use int8."}
                    without.append(type(one.config).__name__)
    except UnusableWeightError as error:
        return {"refusal": str(error)}
    return {"without_kernel": without}


PROBES = {"torch": _torch, "torchao": _torchao, "transformers": _transformers, "vllm": _vllm}


def main() -> None:
    """Answer the question on stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what packages print on import is not the answer
    for package in sys.argv[1:]:
        try:
            answer = PROBES[package]()
        except BaseException as error:  # noqa: BLE001 - some packages exit
            cause = error
            while cause.__cause__ is not None:  # transformers says only that a class of its own could not be imported
                cause = cause.__cause__
            missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
            answer = {"error": last_line(cause), "missing": missing}
        out.write(json.dumps({package: answer}, default=str) + "\n")
        out.flush()
    os._exit(0)  # no library gets a chance to crash at exit


if __name__ == "__main__":
    main()
