"""Safetensors files of bounded size, with an index where there are several."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

__all__ = ["ShardWriter"]

_SHARD_BYTES: Final = 4 * 2**30


class ShardWriter:
    """Collect tensors and write them out whenever a file is full.

    Args:
        folder: where the files go.
        metadata: TorchAO's description of all tensors of the checkpoint, or nothing where none is quantised. Each
            file carries all of it: vLLM looks into the file at hand, transformers into the last one.
    """

    def __init__(self, folder: Path, metadata: dict[str, str]) -> None:
        self._folder = folder
        self._metadata = metadata
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._files: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: "torch.Tensor") -> None:
        """Take one tensor; a quantised one stays in one file with its scales."""
        size = sum(part.numel() * part.element_size() for part in _parts(tensor))
        if self._pending and self._bytes + size > _SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Write what is left, name the files by their number, and write the index."""
        self._flush()
        count = len(self._files)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._files, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            os.replace(self._folder / f"{number}.part", self._folder / name)
            (self._folder / name).chmod(0o644)  # safetensors makes them for the owner alone
            weight_map |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        tensors: dict[str, Any] = dict(self._pending)
        if self._metadata:
            from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

            tensors, _ = flatten_tensor_state_dict(tensors)
        self._files.append(list(tensors))
        save_file(tensors, self._folder / f"{len(self._files)}.part", metadata={**self._metadata, "format": "pt"})
        self._pending, self._bytes = {}, 0


def _parts(tensor: "torch.Tensor") -> list["torch.Tensor"]:
    names = getattr(tensor, "tensor_data_names", None)
    return [getattr(tensor, name) for name in names] if names else [tensor]
