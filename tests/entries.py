"""Entries to estimate."""

from typing import Any

from chancellor import ModelSpec

MIB, GIB = 2**20, 2**30

LLAMA = "shape:llama-3.1-8b"


def spec(source: str = "shape:nano", scheme: str | None = None, **engine: Any) -> ModelSpec:
    return ModelSpec(name="m", source=source, scheme=scheme, trinity=96, engine=engine)


def shape(layers: int = 2, **overrides: Any) -> ModelSpec:
    return spec(vllm={"hf_overrides": {"num_hidden_layers": layers, **overrides}})
