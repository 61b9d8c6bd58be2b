"""What a checkpoint holds, read from its headers; no tensor is loaded and nothing is executed."""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from chancellor.errors import BrokenCheckpointError, MissingDependencyError, UnsafeCheckpointError

__all__ = ["CheckpointInfo", "inspect_checkpoint", "read_json", "safetensors_files"]

_MAX_HEADER = 100 * 2**20  # the limit that the safetensors format itself sets, in bytes
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Facts from the headers of a checkpoint."""

    format: Literal["safetensors", "gguf", "pickle"]
    parameters: int
    """Number of logical parameters: a quantised weight counts once, its scales do not."""
    bytes: int
    """Size of the weight files."""
    quant_method: str | None
    """`quant_method` of config.json: "torchao" for a checkpoint made by TorchAO."""
    torchao_type: str | None
    """Class name of the TorchAO config, e.g. "Int8WeightOnlyConfig"."""
    has_tokenizer: bool


def inspect_checkpoint(path: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> CheckpointInfo:
    """Read the headers of the folder or GGUF file at `path`.

    Raises:
        BrokenCheckpointError: a file is missing, cut short or malformed.
        UnsafeCheckpointError: only pickled weights are there, or the model brings code of its own.
    """
    if path.suffix == ".gguf":
        return _gguf(path, path.stat().st_mtime_ns)
    if not path.is_dir():
        raise BrokenCheckpointError(f"{path} is neither a folder nor a .gguf file.")
    config = read_json(path / "config.json")
    if config.get("auto_map") and not trust_remote_code:
        raise UnsafeCheckpointError(
            f"The model in {path} brings Python code of its own, which would be run.",
            hint="Read that code; if you trust it, set trust_remote_code = true in the catalog entry.",
        )
    shards = safetensors_files(path)
    if not shards:
        return _pickle(path, config, allow_pickle=allow_pickle)
    parameters = sum(_safetensors(shard, shard.stat().st_mtime_ns) for shard in shards)
    quantization = config.get("quantization_config") or {}
    quant_type = quantization.get("quant_type")
    quant_type = quant_type.get("default") if isinstance(quant_type, dict) else quant_type
    return CheckpointInfo(
        format="safetensors",
        parameters=parameters,
        bytes=sum(shard.stat().st_size for shard in shards),
        quant_method=quantization.get("quant_method"),
        torchao_type=quant_type.get("_type") if isinstance(quant_type, dict) else quant_type,
        has_tokenizer=any((path / name).exists() for name in _TOKENIZERS),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BrokenCheckpointError: it is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path.parent} has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BrokenCheckpointError(f"{path} does not hold a JSON object.")
    return content


def safetensors_files(folder: Path) -> list[Path]:
    """Return the weight files: those of the index where there is one, as some repositories hold the weights twice.

    Raises:
        BrokenCheckpointError: a file of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    named = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
    if missing := [name for name in named if not (folder / name).is_file()]:
        raise BrokenCheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names.")
    return [folder / name for name in named]


@lru_cache(maxsize=1024)
def _safetensors(path: Path, _mtime: int) -> int:
    """Return the number of parameters in one file; its tensors must fill the file exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise BrokenCheckpointError(f"{path} is not a safetensors file, or is cut short.")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            # TorchAO keeps a weight as several tensors: "..._weight_qdata", "..._weight_scale", ...
            quantised = "tensor_names" in metadata
            counts = [
                math.prod(entry["shape"])
                for name, entry in header.items()
                if not (quantised and "._" in name and not name.endswith("_qdata"))
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenCheckpointError(f"The header of {path} is malformed: {error}.") from error
    if end != size - 8 - length:
        raise BrokenCheckpointError(f"{path} should have {8 + length + end:,} bytes and has {size:,}.")
    return sum(counts)


@lru_cache(maxsize=64)
def _gguf(path: Path, _mtime: int) -> CheckpointInfo:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependencyError.of("gguf") from error
    try:
        tensors = GGUFReader(path).tensors
        parameters = sum(int(tensor.n_elements) for tensor in tensors)
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise BrokenCheckpointError(f"{path} is not a readable GGUF file: {error}.") from error
    return CheckpointInfo("gguf", parameters, path.stat().st_size, None, None, has_tokenizer=True)


def _pickle(path: Path, config: dict[str, Any], *, allow_pickle: bool) -> CheckpointInfo:
    weights = [file for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(path.glob(pattern))]
    if not weights:
        raise BrokenCheckpointError(f"{path} holds no weights: neither *.safetensors nor a .gguf file.")
    if not allow_pickle:
        raise UnsafeCheckpointError(
            f"{path} holds only pickled weights ({weights[0].name}), which can run code when loaded.",
            hint="Use a safetensors version; if you trust the file, set allow_pickle = true in the catalog entry.",
        )
    size = sum(file.stat().st_size for file in weights)
    width = 4 if config.get("torch_dtype", config.get("dtype")) == "float32" else 2
    has_tokenizer = any((path / name).exists() for name in _TOKENIZERS)
    return CheckpointInfo("pickle", size // width, size, None, None, has_tokenizer)
