"""From a catalog entry to a folder that an engine can serve, quantising into the cache on first use."""

import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chancellor.checkpoints import Checkpoint, CheckpointInfo, fetch, find, inspect_checkpoint
from chancellor.checkpoints.inspect import read_json
from chancellor.checkpoints.shapes import SHAPE, Shape
from chancellor.errors import BrokenCheckpointError, QuantizationError
from chancellor.quantization.manifest import FORMAT, Manifest
from chancellor.quantization.schemes import SCHEMES, Scheme
from chancellor.quantization.writer import write_checkpoint
from chancellor.settings import settings

if TYPE_CHECKING:
    from chancellor.catalog import ModelSpec

__all__ = ["Prepared", "parameters_of", "prepare", "prepared_folder"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint ready to be served."""

    folder: Path
    scheme: str | None
    """Name of the scheme, or the quantisation method of a checkpoint that came quantised."""
    dtype: str | None
    """Compute type that the checkpoint demands; None leaves it to the engine."""
    parameters: int
    random_weights: bool = False
    """Whether there are none in the folder, and the engine makes some up."""
    quantize_at_load: str | None = None
    """Name of the scheme that the engine is to apply to its weights; None where the files hold what is served."""


def prepare(spec: "ModelSpec", dtype: str) -> Prepared:
    """Make the entry's checkpoint ready: download, check, and quantise or convert it where needed.

    Args:
        spec: the catalog entry.
        dtype: compute type of the engine that will serve it.

    Raises:
        CheckpointError: it cannot be had, is broken or unsafe, or does not fit the entry's scheme.
    """
    checkpoint = fetch(spec.source, spec.revision, allow_pickle=spec.allow_pickle)
    if checkpoint.random_weights:
        return _without_weights(spec, checkpoint)
    info = inspect_checkpoint(checkpoint.path, allow_pickle=spec.allow_pickle, trust_remote_code=spec.trust_remote_code)
    if info.quant_method is not None:
        return _already_quantised(spec, checkpoint, info)
    if spec.scheme is None and info.format != "gguf":
        return _checked(Prepared(checkpoint.path, None, None, info.parameters), info)
    scheme = Scheme.of(spec.scheme) if spec.scheme else None
    folder = prepared_folder(checkpoint, spec.scheme, dtype)
    if not folder.exists():
        write_checkpoint(
            checkpoint,
            folder,
            scheme,
            name=spec.name,
            dtype=dtype if scheme else "bfloat16",
            trust_remote_code=spec.trust_remote_code,
        )
    manifest = Manifest.read(folder)
    if manifest is None:
        raise BrokenCheckpointError(f"{folder} has no manifest.", hint=f"Delete {folder} and let it be made again.")
    manifest.check(folder)
    served = inspect_checkpoint(folder, trust_remote_code=spec.trust_remote_code)
    demanded = dtype if scheme else None
    return _checked(Prepared(folder, spec.scheme, demanded, manifest.parameters), served)


def prepared_folder(checkpoint: Checkpoint, scheme: str | None, dtype: str) -> Path:
    """Return the folder of the cache for this checkpoint, scheme and compute type, whether it exists or not."""
    parts = [checkpoint.identity, str(scheme), dtype if scheme else "", str(FORMAT), _torchao() if scheme else ""]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    slug = re.sub(r"[^\w.-]+", "-", re.sub(r"[@#=].*", "", checkpoint.identity.split(":", 1)[1])).strip("-.")
    return settings().cache_dir / "checkpoints" / f"{slug[-60:]}-{scheme or 'converted'}-{digest}"


def parameters_of(spec: "ModelSpec") -> int | None:
    """Return the entry's parameter count from the headers of its checkpoint, or None if it is not on this machine.

    Raises:
        CheckpointError: the source does not exist, or is broken or unsafe.
        MissingDependencyError: a package that reads it is not installed.
    """
    if spec.parameters is not None:
        return spec.parameters
    if spec.engine.kind == "openai":
        return None
    if spec.source.startswith(SHAPE):
        return Shape.of(spec.source).parameters()
    checkpoint = find(spec.source, spec.revision)
    if checkpoint is None:
        return None
    # Parsing a GGUF's header takes seconds; once it was converted, the manifest knows.
    for path in sorted((settings().cache_dir / "checkpoints").glob("*/chancellor.json")):
        try:
            manifest = Manifest.read(path.parent)
        except BrokenCheckpointError:
            continue  # of another model, maybe; its own engine start will say so
        if manifest is not None and manifest.source == checkpoint.identity:
            return manifest.parameters
    try:
        info = inspect_checkpoint(
            checkpoint.path, allow_pickle=spec.allow_pickle, trust_remote_code=spec.trust_remote_code
        )
    except BrokenCheckpointError:
        if checkpoint.identity.startswith("hub:"):
            return None  # a download that was interrupted; it goes on when the model is used
        raise
    return info.parameters


def _without_weights(spec: "ModelSpec", checkpoint: Checkpoint) -> Prepared:
    options = spec.engine.vllm
    overrides = options.get("hf_overrides")
    config = read_json(checkpoint.path / "config.json") | (overrides if isinstance(overrides, dict) else {})
    quantization = config.get("quantization_config")
    own = quantization.get("quant_method") if isinstance(quantization, dict) else options.get("quantization")
    if spec.scheme is not None and own is not None:
        raise QuantizationError(
            f"{spec.name} asks for scheme {spec.scheme!r}, but its configuration for {own!r}.",
            hint="Leave out one of the two: scheme, or the quantisation in config.json or [models.engine.vllm].",
        )
    parameters = spec.parameters if spec.parameters is not None else Shape.of(spec.source).parameters()
    return Prepared(
        checkpoint.path,
        spec.scheme or own,
        None,
        parameters,
        random_weights=True,
        quantize_at_load=spec.scheme,
    )


def _already_quantised(spec: "ModelSpec", checkpoint: Checkpoint, info: CheckpointInfo) -> Prepared:
    names = {scheme.torchao_type: scheme.name for scheme in SCHEMES.values()}
    actual = names.get(info.torchao_type or "", info.torchao_type) or info.quant_method
    if spec.scheme is not None and spec.scheme != actual:
        raise QuantizationError(
            f"{spec.name} asks for scheme {spec.scheme!r}, but its checkpoint is quantised as {actual!r}.",
            hint="Leave scheme out of the entry to serve it as it is, or name the unquantised source.",
        )
    manifest = Manifest.read(checkpoint.path)
    if manifest is not None:
        manifest.check(checkpoint.path)
    demanded = None
    if info.quant_method == "torchao":
        config = read_json(checkpoint.path / "config.json")
        demanded = config.get("dtype") or config.get("torch_dtype")
        _check_torchao(checkpoint.path, config["quantization_config"])
    return _checked(Prepared(checkpoint.path, actual, demanded, info.parameters), info)


def _check_torchao(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what would load and answer wrongly, or fail without a word on why."""
    default = config["quant_type"].get("default") if isinstance(config.get("quant_type"), dict) else None
    if not isinstance(default, dict):
        raise QuantizationError(
            f"{folder} was written by an old TorchAO, whose format is not read any more.",
            hint="Quantise the original again: chancellor quantize SOURCE DEST.",
        )
    if "PerTensor" in json.dumps(default):
        raise QuantizationError(
            f"{folder} has one scale per tensor, which vLLM's fused layers load wrongly without noticing.",
            hint="Quantise the original again with scales per row.",
        )


def _checked(prepared: Prepared, info: CheckpointInfo) -> Prepared:
    if not info.has_tokenizer:
        raise BrokenCheckpointError(
            f"{prepared.folder} has no tokenizer.",
            hint="Copy tokenizer.json and tokenizer_config.json of the model there.",
        )
    return prepared


def _torchao() -> str:
    try:
        return importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return ""
