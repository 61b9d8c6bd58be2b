"""Shapes: models without weights, of which only config.json is known. An engine fills them with random numbers.

They answer nonsense as fast as the real model answers, which is what a measurement of speed and memory needs.
"""

import hashlib
import json
import os
import re
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Self

from chancellor.checkpoints.inspect import read_json
from chancellor.checkpoints.vocabulary import SMALLEST_VOCABULARY, VOCABULARY_FORMAT, write_tokenizer
from chancellor.errors import BrokenCheckpointError, MissingDependencyError, SourceNotFoundError
from chancellor.settings import settings

__all__ = ["SHAPE", "Shape"]

SHAPE: Final = "shape:"
"""What the source of a catalog entry without weights begins with."""
_CONFIG: Final = ".json"  # what tells the path of a config.json from the name of a shape


@dataclass(frozen=True, slots=True)
class Shape:
    """A model without weights."""

    name: str
    """Its name here, or the path of its config.json."""
    config: dict[str, Any]
    known_parameters: int | None = None
    """Parameter count of a shape that has a name; None for that of a path."""

    @classmethod
    def of(cls, source: str) -> Self:
        """Return the shape that a source such as "shape:llama-3.1-8b" or "shape:some/config.json" stands for.

        Raises:
            SourceNotFoundError: there is no such shape, or no such file.
            BrokenCheckpointError: the file is not the config.json of a language model.
        """
        name = source.removeprefix(SHAPE)
        known = _known()
        if name in known:
            return cls(name, json.loads(known[name]["config"]), int(known[name]["parameters"]))
        path = Path(name).expanduser()
        if path.suffix != _CONFIG or not path.is_file():
            raise SourceNotFoundError(
                f"There is no shape {name!r}.",
                hint=f"There are: {', '.join(known)}; or name the path of a config.json.",
            )
        config = read_json(path)
        config.pop("auto_map", None)  # code of the model's own, which stays behind
        shape = cls(str(path.resolve()), config)
        shape._check()
        return shape

    @property
    def identity(self) -> str:
        """The name with a digest of all that the folder is made from."""
        content = json.dumps([VOCABULARY_FORMAT, self._written_config()], sort_keys=True)
        return f"{SHAPE}{self.name}#{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def parameters(self) -> int:
        """Return the parameter count. That of a path is counted in a model without storage, which imports torch.

        Raises:
            BrokenCheckpointError: transformers does not know the architecture.
            MissingDependencyError: torch or transformers is not installed.
        """
        return _count(self) if self.known_parameters is None else self.known_parameters

    def folder(self) -> Path:
        """Return a folder of the cache with config.json and a tokenizer; it is made when it is first asked for.

        Raises:
            BrokenCheckpointError: it cannot be written.
        """
        name = re.sub(r"[^\w.-]+", "-", self.identity.removeprefix(SHAPE)).strip("-.")
        folder = settings().cache_dir / "shapes" / name[-80:]
        if folder.is_dir():
            return folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as aside:
                made = Path(aside, folder.name)
                made.mkdir()
                self._write(made)
                os.replace(made, folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, and its folder is the same
                raise BrokenCheckpointError(
                    f"Writing {folder} failed: {error}.", hint="Make room, or set CHANCELLOR_CACHE_DIR to another disk."
                ) from error
        return folder

    def _write(self, folder: Path) -> None:
        text = self._text_config()
        (folder / "config.json").write_text(json.dumps(self._written_config(), indent=2) + "\n", encoding="utf-8")
        write_tokenizer(
            folder,
            text["vocab_size"],
            bos=_first(text.get("bos_token_id")),
            eos=_first(text.get("eos_token_id")),
            max_length=int(text.get("max_position_embeddings") or 2**20),
        )

    def _written_config(self) -> dict[str, Any]:
        # From this version on, transformers does not take every large vocabulary for Mistral's, and warn of it.
        return {**self.config, "transformers_version": "5.0.0"}

    def _text_config(self) -> dict[str, Any]:
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config

    def _check(self) -> None:
        size = self._text_config().get("vocab_size")
        if not isinstance(size, int) or size < SMALLEST_VOCABULARY or "model_type" not in self.config:
            raise BrokenCheckpointError(
                f"{self.name} is not the config.json of a language model.",
                hint=f"It needs model_type, and a vocab_size of at least {SMALLEST_VOCABULARY}.",
            )


@cache
def _known() -> dict[str, Any]:
    return tomllib.loads(files("chancellor.checkpoints").joinpath("shapes.toml").read_text(encoding="utf-8"))


def _first(token_id: Any) -> int | None:
    """Return the id, or the first of several."""
    first = token_id[0] if isinstance(token_id, list) and token_id else token_id
    return first if isinstance(first, int) else None


def _count(shape: Shape) -> int:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingDependencyError.of(error.name) from error
    config = {key: value for key, value in shape.config.items() if key not in ("model_type", "quantization_config")}
    try:
        loaded = AutoConfig.for_model(shape.config["model_type"], **config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(loaded)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(
            f"transformers cannot build the model of {shape.name}: {error}.",
            hint="A newer transformers may know the architecture; else set parameters in the catalog entry.",
        ) from error
    return sum(int(parameter.numel()) for parameter in model.parameters())
