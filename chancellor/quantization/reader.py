"""The unquantised original, tensor by tensor: safetensors are streamed, GGUF goes through transformers."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chancellor.checkpoints.inspect import CheckpointInfo, read_json, safetensors_files
from chancellor.errors import BrokenCheckpointError, QuantizationError

if TYPE_CHECKING:
    import torch

__all__ = ["CheckpointReader", "open_reader"]

_NOT_COPIED = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "chancellor.json", ".*")


class CheckpointReader(ABC):
    """Source of the tensors and of the files that travel with them."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the model's config.json, without any quantization_config."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each tensor, in the order of the file."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Yield each tensor by its name in the checkpoint, one in memory at a time where the format allows it."""

    @abstractmethod
    def copy_companions(self, folder: Path) -> None:
        """Write tokenizer, chat template and generation config into `folder`."""


def open_reader(path: Path, info: CheckpointInfo, *, trust_remote_code: bool = False) -> CheckpointReader:
    """Open an unquantised checkpoint.

    Raises:
        QuantizationError: it is quantised already, or pickled.
    """
    if info.quant_method is not None:
        raise QuantizationError(
            f"{path} is quantised already ({info.quant_method}).", hint="Start from the unquantised checkpoint."
        )
    if info.format == "gguf":
        return _GGUF(path)
    if info.format == "safetensors":
        return _Safetensors(path, trust_remote_code=trust_remote_code)
    raise QuantizationError(
        f"{path} holds pickled weights.",
        hint="Convert them to safetensors first (save_pretrained of transformers does).",
    )


class _Safetensors(CheckpointReader):
    def __init__(self, folder: Path, *, trust_remote_code: bool) -> None:
        self._folder = folder
        self._trust_remote_code = trust_remote_code
        self._shards = safetensors_files(folder)

    def config(self) -> dict[str, Any]:
        return read_json(self._folder / "config.json")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        from safetensors import safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for shard in self._shards:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        return shapes

    def tensors(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        from safetensors import safe_open

        for shard in self._shards:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield name, file.get_tensor(name)

    def copy_companions(self, folder: Path) -> None:
        from transformers import AutoConfig, GenerationConfig

        shutil.copytree(self._folder, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)
        if not (folder / "generation_config.json").exists():
            config = AutoConfig.from_pretrained(self._folder, trust_remote_code=self._trust_remote_code)
            GenerationConfig.from_model_config(config).save_pretrained(folder)


class _GGUF(CheckpointReader):
    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        self._path = path
        try:
            # Without dequantize, transformers keeps the weights packed as they are in the file.
            self._model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            raise BrokenCheckpointError(
                f"transformers cannot read {path}: {error}.",
                hint="Use a safetensors version of the model, or a GGUF of an architecture that transformers converts.",
            ) from error
        self._state: dict[str, torch.Tensor] = self._model.state_dict()
        if self._model.config.tie_word_embeddings:
            for name in self._model.all_tied_weights_keys:
                self._state.pop(name, None)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self._model.config.to_json_string())
        # Names that start with an underscore hold the folder it was read from.
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        config.pop("quantization_config", None)
        return {**config, "architectures": [type(self._model).__name__]}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def tensors(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        yield from self._state.items()

    def copy_companions(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(self._path.parent, gguf_file=self._path.name).save_pretrained(folder)
        self._model.generation_config.save_pretrained(folder)
