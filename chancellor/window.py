"""How long a conversation, with its answer, a model of the catalog can take."""

from typing import Any, NamedTuple

from chancellor.catalog import ModelSpec
from chancellor.checkpoints import find
from chancellor.checkpoints.inspect import read_json
from chancellor.errors import CheckpointError
from chancellor.memory.gguf import read_header
from chancellor.memory.layout import Layout

__all__ = ["Window", "window_of"]


class Window(NamedTuple):
    """A model's context."""

    tokens: int | None
    """None where only its server knows."""
    certain: bool
    """Whether it stays so: a checkpoint that is not on this machine yet may have less."""


def window_of(spec: ModelSpec) -> Window:
    """Return the entry's context window: never more than its checkpoint says, where that is here. Reads a header."""
    asked, options = spec.context_window, spec.engine
    if options.kind == "openai" or (options.kind == "vllm" and options.vllm.get("max_model_len") == asked):
        return Window(asked, certain=True)  # vLLM takes what its own arguments say, or does not start
    try:
        config = _config(spec)
        own = None if config is None else Layout.of(config).context
    except (CheckpointError, ValueError, TypeError, OSError):  # which the start of its engine will explain
        return Window(asked, certain=False)
    return Window(min(filter(None, (asked, own)), default=None), certain=config is not None)


def _config(spec: ModelSpec) -> dict[str, Any] | None:
    checkpoint = find(spec.source, spec.revision)
    if checkpoint is None:
        return None
    if checkpoint.path.suffix == ".gguf":
        return read_header(checkpoint.path).config
    overrides = spec.engine.vllm.get("hf_overrides")
    return read_json(checkpoint.path / "config.json") | (overrides if isinstance(overrides, dict) else {})
