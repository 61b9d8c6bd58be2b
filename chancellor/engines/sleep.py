"""Which engines may be put to sleep: where vLLM can do it, and where it is known that it answers as before."""

import os
from typing import Any, Final

from chancellor.catalog import ModelSpec
from chancellor.memory.layout import Layout

__all__ = ["SOUND", "may_sleep"]

SOUND: Final = frozenset({None, "int8"})
"""Schemes whose answers after a sleep were seen to be those before it, None being weights as they are. On one GPU, in
bfloat16, with our plug-in's kernels."""
_DTYPE: Final = "bfloat16"
_PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_UNTRIED: Final = frozenset(
    {"cpu_offload_gb", "hf_overrides", "kv_transfer_config", "load_format", "quantization", "speculative_config"}
)
"""Arguments of vLLM's with which weights are others, or elsewhere, than the entry says."""


def may_sleep(spec: ModelSpec, config: dict[str, Any], *, scheme: str | None, dtype: str, ranks: int) -> bool:
    """Return whether a vLLM engine on CUDA is to be started so that it can sleep.

    Args:
        spec: the entry.
        config: config.json of its checkpoint.
        scheme: of the weights that are served, ours or their own; None if they are not quantised.
        dtype: compute type.
        ranks: GPUs that the layers are split over.
    """
    if spec.engine.sleep is False or not _possible(spec, config, ranks):
        return False
    dtype = str(spec.engine.vllm.get("dtype", dtype))
    return spec.engine.sleep is True or (scheme in SOUND and dtype == _DTYPE and not _UNTRIED & set(spec.engine.vllm))


def _possible(spec: ModelSpec, config: dict[str, Any], ranks: int) -> bool:
    more, options = spec.engine.vllm, spec.engine
    if options.kind != "vllm" or options.kernels == "torchao" or more.get("enable_sleep_mode") is False:
        return False
    if any(int(more.get(name) or 1) > 1 for name in _PARALLEL) or int(more.get(_PARALLEL[0]) or ranks) > 1:
        return False
    overrides = more.get("hf_overrides")
    layout = Layout.of({**config, **(overrides if isinstance(overrides, dict) else {})})
    if layout.experts or more.get("enable_lora") or "fp8" in str(more.get("kv_cache_dtype")):
        return False
    # vLLM's allocator, which is what sleeps, and PyTorch's growing segments exclude each other.
    growing = (os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    return not any("expandable_segments:true" in value.lower().replace(" ", "") for value in growing)
