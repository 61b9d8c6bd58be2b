"""What the engine of an entry will say to its configuration."""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from chancellor.catalog import ModelSpec
from chancellor.checkpoints.inspect import read_json
from chancellor.doctor.entries import Entry
from chancellor.doctor.finding import Finding, error, ok, warning
from chancellor.doctor.probes import Facts
from chancellor.engines.hardware import why_not_compile
from chancellor.quantization.schemes import SCHEMES

__all__ = ["architecture", "compiler", "context", "parsers", "questions", "template", "weights"]

_OWN_PARSER: Final = "hermes"  # needs no parser of vLLM's


def questions(entries: list[Entry], *, on_gpu: bool) -> dict[str, Any]:
    """Return what the packages are to be asked about the entries.

    Args:
        entries: those of the catalog.
        on_gpu: whether engines run on GPUs.
    """
    weights = {}
    for entry in entries:
        spec, config = entry.spec, entry.text_config
        quantization = (entry.config or {}).get("quantization_config")
        torchao = isinstance(quantization, dict) and quantization.get("quant_method") == "torchao"
        if entry.broken or spec.engine.kind != "vllm" or not (torchao or spec.scheme in SCHEMES):
            continue
        hidden = config.get("hidden_size")
        # A GGUF file's sizes are not known yet; the kernels take these.
        inputs = hidden if isinstance(hidden, int) else 1024
        outputs = config.get("intermediate_size")
        weights[spec.name] = {
            "quantization": quantization if torchao else None,
            "scheme": spec.scheme,
            "inputs": inputs,
            "outputs": outputs if isinstance(outputs, int) else 4096,
            "dtype": entry.dtype,
            "kernels": spec.engine.kernels,
            "device": "cuda" if on_gpu else "cpu",
        }
    names = sorted({name for entry in entries for name in entry.architectures})
    return {"architectures": names, "weights": weights}


def architecture(entry: Entry, probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether the entry's engine knows the model's class."""
    spec, names = entry.spec, entry.architectures
    if entry.config is None or entry.broken:
        return
    if not names:
        message = "its config.json names no architectures: vLLM does not know what to build"
        yield error("architecture", message, 'Add "architectures": ["..."] to config.json, as the original has it')
        return
    in_transformers = set(names) & set(probes.get("transformers", {}).get("architectures", ()))
    if spec.engine.kind == "transformers":
        if in_transformers or spec.trust_remote_code or "version" not in probes.get("transformers", {}):
            yield ok("architecture", f"transformers runs {names[0]}")
        else:
            message = f"the installed transformers does not know {', '.join(names)}"
            yield error("architecture", message, "pip install --upgrade transformers")
        return
    known: Mapping[str, str | None] | None = probes.get("vllm", {}).get("architectures")
    if known is None or (spec.trust_remote_code and "auto_map" in entry.config):
        return
    runs = next((found for name in names if (found := known.get(name)) is not None), None)
    elsewhere = 'Set kind = "transformers" under [models.engine]' if in_transformers else "Name another model"
    release = probes["vllm"]["version"]
    if runs == "pooling":
        fix = "Name a model that generates text: its architecture ends in ForCausalLM, mostly"
        yield error("architecture", f"{names[0]} makes embeddings or scores, and no text", fix)
    elif runs in ("vllm", "transformers"):
        inside = "" if runs == "vllm" else ", by the implementation of transformers"
        yield ok("architecture", f"vLLM runs {names[0]}{inside}")
    elif runs is not None:
        yield error("architecture", f"vLLM ran {names[0]} {runs}, and this is {release}", elsewhere)
    else:
        newer = "pip install --upgrade vllm, if a newer release knows it"
        message = f"the installed vLLM {release} does not know {', '.join(names)}"
        yield error("architecture", message, elsewhere if in_transformers else f"{elsewhere}; or {newer}")


def weights(entry: Entry, probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether vLLM will take the quantised weights, as the plug-in itself says."""
    facts = probes.get("vllm", {})
    if (problem := facts.get("weights_error")) is not None:
        yield warning(
            "weights", f"whether vLLM takes these weights is not known: {problem}", "chancellor ask --model NAME hello"
        )
        return
    answer = facts.get("weights", {}).get(entry.spec.name)
    if answer is None:
        return
    if (refusal := answer.get("refusal")) is not None:
        what, _, fix = refusal.strip().removesuffix(".").rpartition(". ")
        yield error("weights", what or refusal, fix)
    elif slow := answer.get("without_kernel"):
        message = f"vLLM has no kernel here for {', '.join(dict.fromkeys(slow))}: TorchAO's own runs it, which is slow"
        yield warning("weights", message, 'Set scheme = "int8", which has one everywhere')
    else:
        yield ok("weights", "vLLM has a kernel for its weights")


def template(entry: Entry) -> Iterator[Finding]:
    """Look at whether the model comes with a tokenizer and a chat template."""
    folder = entry.folder
    if folder is None or not folder.is_dir() or entry.broken:
        return
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
    ):
        message = f"{folder} has no tokenizer"
        yield error("tokenizer", message, "Copy tokenizer.json and tokenizer_config.json of the model there")
    elif _has_template(folder):
        yield ok("chat-template", "it has a tokenizer and a chat template")
    else:
        message = "it has no chat template: a conversation is joined to plain text, which the model goes on with"
        yield warning("chat-template", message, f"Copy chat_template.jinja of the instruct model to {folder}")


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json", "tekken.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def parsers(spec: ModelSpec, probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether vLLM has the parsers that the entry names."""
    for kind, name in (("tool_parser", spec.engine.tool_parser), ("reasoning_parser", spec.engine.reasoning_parser)):
        known = probes.get("vllm", {}).get(f"{kind}s")
        if name is None or known is None or (kind, name) == ("tool_parser", _OWN_PARSER):
            continue
        if name in known:
            yield ok(kind.replace("_", "-"), f"vLLM has the {kind} {name}")
            continue
        near = difflib.get_close_matches(name, known, 3) or known
        choices = " or ".join(f'"{one}"' for one in near) if len(near) <= 3 else f"one of: {', '.join(near)}"
        fix = f"Set {kind} under [models.engine] to {choices}"
        yield error(kind.replace("_", "-"), f"the installed vLLM has no {kind} {name!r}", fix)


def context(entry: Entry) -> Iterator[Finding]:
    """Look at whether the entry asks for more tokens than the model was trained for."""
    engine, config = entry.spec.engine, entry.text_config
    own = config.get("max_position_embeddings")
    if not isinstance(own, int):
        return
    forced = engine.vllm.get("max_model_len") if engine.kind == "vllm" else None
    if isinstance(forced, int) and forced > own * _stretch(config):
        if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
            return
        message = f"max_model_len is {forced}, and the model was trained for {own}: vLLM does not start"
        yield error("context", message, f"Set max_model_len = {own} under [models.engine.vllm], or leave it out")
    elif forced is None and "max_model_len" in engine.model_fields_set and engine.max_model_len > own:
        message = f"max_model_len is {engine.max_model_len}, and the model was trained for {own}: that is what it gets"
        yield warning("context", message, f"Set max_model_len = {own} under [models.engine]")


def _stretch(config: Mapping[str, Any]) -> float:
    """Return by how much the positions are scaled, as far as vLLM lets that make the context longer."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    factor = scaling.get("factor") if kind in ("linear", "dynamic") else None
    return float(factor) if isinstance(factor, int | float) else 1.0


def compiler(entry: Entry, probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether torch.compile can do what the entry asks of it. A GPU's code needs no compiler for the CPU's."""
    options = entry.spec.engine
    if options.kind != "vllm" or options.enforce_eager is not False or probes.get("torch", {}).get("cuda"):
        return
    if (found := why_not_compile(entry.dtype)) is None:
        yield ok("compiler", "torch.compile has what it needs")
        return
    reason, fix = found
    yield warning("compiler", f"it runs without torch.compile, slower: {reason}", fix)
