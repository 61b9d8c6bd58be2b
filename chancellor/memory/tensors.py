"""What tensors a model consists of, from the headers of its files or from its config.json; none is loaded."""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from chancellor.checkpoints.inspect import safetensors_files
from chancellor.errors import BrokenCheckpointError, MissingDependencyError
from chancellor.memory.layout import Layout

__all__ = ["Tensor", "gguf_config", "of_folder", "of_gguf", "of_layout"]

_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
_GGUF_KEYS: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
}


class Tensor(NamedTuple):
    """One tensor, or several of a kind."""

    kind: Literal["linear", "embedding", "head", "other"]
    values: int
    columns: int = 0
    """Length of a row; 0 if it is no matrix."""
    stored: int | None = None
    """Bytes, where they stay as they are in the file; None for what is converted to the compute type."""


def of_layout(layout: Layout, parameters: int | None = None) -> list[Tensor]:
    """Return the tensors of a model that has no files.

    Args:
        layout: its sizes.
        parameters: how many it has, if that is known; the sizes may not account for all of them.
    """
    table = layout.vocabulary * layout.hidden
    tensors = [
        Tensor("embedding", table, layout.hidden),
        Tensor("linear", layout.linear_weights(), layout.hidden),
        Tensor("other", layout.expert_weights()),
    ]
    if not layout.tied:
        tensors.append(Tensor("head", table, layout.hidden))
    rest = (parameters or 0) - sum(tensor.values for tensor in tensors)
    return [*tensors, Tensor("other", rest)] if rest > 0 else tensors


def of_folder(folder: Path) -> list[Tensor]:
    """Return the tensors of a folder's safetensors, which were inspected before."""
    return [tensor for file in safetensors_files(folder) for tensor in _of_file(file, file.stat().st_mtime_ns)]


@lru_cache(maxsize=256)
def _of_file(path: Path, _mtime: int) -> tuple[Tensor, ...]:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        return tuple(_tensor(name, entry) for name, entry in header.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpointError(f"The header of {path} is malformed: {error}.") from error


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    shape, kind = entry["shape"], entry["dtype"]
    values, (start, end) = math.prod(shape), entry["data_offsets"]
    if kind not in _FLOATS:
        return Tensor("other", values, stored=end - start)
    return Tensor(_kind(name, shape), values, shape[-1] if len(shape) == 2 else 0)


def _kind(name: str, shape: list[int]) -> Literal["linear", "embedding", "head", "other"]:
    if "lm_head" in name or name == "output.weight":
        return "head"
    if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight", "token_embd.weight")):
        return "embedding"
    # TorchAO leaves alone what is no torch.nn.Linear: experts, most of all.
    plain = len(shape) == 2 and name.endswith(".weight") and "embed" not in name and ".experts." not in name
    return "linear" if plain and "norm" not in name else "other"


@lru_cache(maxsize=16)
def _gguf(path: Path, _mtime: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependencyError.of("gguf") from error
    try:
        reader = GGUFReader(path)
        tensors = []
        for tensor in reader.tensors:
            shape = [int(size) for size in reversed(tensor.shape)]
            tensors.append(Tensor(_kind(tensor.name, shape), math.prod(shape), shape[-1] if len(shape) == 2 else 0))
        family = str(reader.fields["general.architecture"].contents())
        config: dict[str, Any] = {}
        for key, name in _GGUF_KEYS.items():
            if (field := reader.fields.get(f"{family}.{key}")) is not None:
                config[name] = field.contents()
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise BrokenCheckpointError(f"{path} is not a readable GGUF file: {error}.") from error
    config["vocab_size"] = next(
        (tensor.values // tensor.columns for tensor in tensors if tensor.kind == "embedding" and tensor.columns), 0
    )
    config["tie_word_embeddings"] = all(tensor.kind != "head" for tensor in tensors)
    return tuple(tensors), config


def of_gguf(path: Path) -> list[Tensor]:
    """Return the tensors of a GGUF file, as they will be once they are converted."""
    return list(_gguf(path, path.stat().st_mtime_ns)[0])


def gguf_config(path: Path) -> dict[str, Any]:
    """Return the sizes in a GGUF file's header, by their names in a config.json."""
    return dict(_gguf(path, path.stat().st_mtime_ns)[1])
