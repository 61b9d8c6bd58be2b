"""What tensors a model consists of, from the headers of its files or from its config.json; none is loaded."""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from chancellor.checkpoints.inspect import safetensors_files
from chancellor.errors import BrokenCheckpointError
from chancellor.memory.gguf import read_header
from chancellor.memory.layout import Layout

__all__ = ["Tensor", "of_folder", "of_gguf", "of_layout"]

_FLOATS: Final = {"F64", "F32", "F16", "BF16"}


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


def _kind(name: str, shape: Sequence[int]) -> Literal["linear", "embedding", "head", "other"]:
    if "lm_head" in name or name == "output.weight":
        return "head"
    if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight", "token_embd.weight")):
        return "embedding"
    # TorchAO leaves alone what is no torch.nn.Linear: experts, most of all.
    plain = len(shape) == 2 and name.endswith(".weight") and "embed" not in name and "exp" not in name
    return "linear" if plain and "norm" not in name else "other"


def of_gguf(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the tensors of a GGUF file as they will be once they are converted, and its sizes as in a config.json."""
    header = read_header(path)
    found = [
        Tensor(_kind(name, shape), math.prod(shape), shape[-1] if len(shape) == 2 else 0)
        for name, shape in header.shapes.items()
    ]
    tables = [tensor for tensor in found if tensor.kind == "embedding" and tensor.columns]
    config = {
        **header.config,
        "vocab_size": tables[0].values // tables[0].columns if tables else 0,
        "tie_word_embeddings": all(tensor.kind != "head" for tensor in found),
    }
    return found, config
