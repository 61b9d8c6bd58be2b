"""What tests of the doctor look for and look at."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chancellor.catalog import EngineOptions, ModelSpec
from chancellor.doctor import Finding
from tests.tiny import make_tokenizer, write_safetensors

TORCH: dict[str, Any] = {"version": "2.13.0+cpu", "cuda": None, "gpus": []}
CUDA: dict[str, Any] = {"version": "2.13.0", "cuda": "13.0", "warnings": []}
H100: dict[str, Any] = {"name": "H100", "capability": (9, 0), "free": 79 * 2**30, "total": 80 * 2**30}


def one(found: Iterable[Finding], check: str) -> Finding:
    """Return the only finding of a check."""
    (finding,) = [finding for finding in found if finding.check == check]
    assert (finding.fix is None) == (finding.status == "ok")
    return finding


def spec(source: object, **options: Any) -> ModelSpec:
    engine = {name: options.pop(name) for name in list(options) if name in EngineOptions.model_fields}
    return ModelSpec(name="x", source=str(source), trinity=96, engine=EngineOptions(**engine), **options)


def write_llama(folder: Path) -> Path:
    """Make the files of a Llama, with weights that nobody reads."""
    folder.mkdir()
    make_tokenizer(folder)
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [64, 8]})
    configure(folder)
    return folder


def configure(folder: Path, **changed: Any) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        **changed,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
