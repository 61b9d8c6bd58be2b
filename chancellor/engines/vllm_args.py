"""From a catalog entry to the arguments and environment of a vLLM engine."""

import copy
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from chancellor.catalog import ModelSpec
from chancellor.checkpoints.inspect import read_json
from chancellor.engines.hardware import cpu_ids, gpu_count, why_not_compile
from chancellor.engines.logs import LOG_VARIABLE, log_file, vllm_logging_config
from chancellor.engines.sleep import may_sleep
from chancellor.errors import QuantizationError
from chancellor.quantization.prepare import Prepared
from chancellor.quantization.schemes import SCHEMES
from chancellor.quantization.vllm_plugin import PLUGIN

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

__all__ = [
    "BATCHED_TOKENS",
    "CPU_SEQUENCES",
    "GPU_SEQUENCES",
    "context_bytes",
    "engine_args",
    "process_environment",
    "tensor_parallel_size",
]

logger = logging.getLogger(__name__)
_GIB: Final = 2**30
CPU_SEQUENCES: Final = 64
GPU_SEQUENCES: Final = 256
BATCHED_TOKENS: Final = 8192


def engine_args(spec: ModelSpec, prepared: Prepared, dtype: str) -> "AsyncEngineArgs":
    """Return vLLM's arguments for serving `prepared` with compute type `dtype`."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    options, on_cpu = spec.engine, gpu_count() == 0
    config = read_json(prepared.folder / "config.json")
    config = config.get("text_config", config)
    max_model_len = min(options.max_model_len, int(config.get("max_position_embeddings") or options.max_model_len))
    sequences = options.max_num_seqs or (CPU_SEQUENCES if on_cpu else GPU_SEQUENCES)
    arguments: dict[str, Any] = {
        "model": str(prepared.folder),
        "served_model_name": spec.name,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size or tensor_parallel_size(config, gpu_count()),
        "enforce_eager": _eager(spec, dtype, on_cpu=on_cpu),
        # AsyncLLM's own defaults for these two are those of a small server.
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(BATCHED_TOKENS, max_model_len),
        "trust_remote_code": spec.trust_remote_code,
        # The defaults of a request come from Context, not from the checkpoint's generation_config.json.
        "generation_config": "vllm",
        # Stats go through a logger of ours: vLLM's own unregisters the metrics of every other engine.
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if options.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gib * _GIB)
    elif on_cpu:
        # vLLM would take a share of the whole machine's memory.
        arguments["kv_cache_memory_bytes"] = max(_GIB, context_bytes(config, max_model_len))
    if prepared.random_weights:
        arguments["load_format"] = "dummy"
    elif prepared.folder.suffix != ".gguf" and not spec.allow_pickle:
        arguments["load_format"] = "safetensors"
    if prepared.quantize_at_load is not None:
        arguments["quantization"] = f"torchao-{prepared.quantize_at_load}"  # of our plug-in
    ranks = arguments["tensor_parallel_size"]
    if not on_cpu and may_sleep(spec, config, scheme=prepared.scheme, dtype=dtype, ranks=ranks):
        arguments["enable_sleep_mode"] = True
    if options.reasoning_parser is not None:  # a guide binds the answer, and not the thoughts
        arguments["reasoning_parser"] = options.reasoning_parser
    if plug_in := _plug_in_options(spec, prepared):
        arguments["additional_config"] = {"chancellor": plug_in}
    return AsyncEngineArgs(**_with_options(arguments, options.vllm))


def _eager(spec: ModelSpec, dtype: str, *, on_cpu: bool) -> bool:
    """Return whether to run without torch.compile: as the entry says, but for where that cannot be or is wrong."""
    eager = spec.engine.enforce_eager
    if eager is False and on_cpu and (found := why_not_compile(dtype)) is not None:
        logger.warning("%s runs without torch.compile, slower: %s. %s", spec.name, *found)
        return True
    return on_cpu if eager is None else eager


def process_environment() -> dict[str, str]:
    """Return the variables that an engine's processes need; those the user has set win."""
    variables = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        LOG_VARIABLE: str(log_file()),
    }
    if os.environ.get("VLLM_CONFIGURE_LOGGING") != "0":  # vLLM refuses to start with both
        variables["VLLM_LOGGING_CONFIG_PATH"] = vllm_logging_config()
    if gpu_count() == 0:
        # vLLM keeps one core for itself by default, which halves the speed on two.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = cpu_ids()
        # On a CPU vLLM 0.32 cannot load what it has compiled and saved; inductor's own cache is warm at a second start.
        variables["VLLM_USE_AOT_COMPILE"] = "0"
    return variables


def _plug_in_options(spec: ModelSpec, prepared: Prepared) -> dict[str, Any]:
    """Return what our plug-in for vLLM is told, beyond its defaults.

    Raises:
        QuantizationError: the plug-in is kept out, or the output layer of an unquantised model is to be quantised.
    """
    options: dict[str, Any] = {}
    by_torchao = prepared.scheme in SCHEMES or "torchao" in str(spec.engine.vllm.get("quantization"))
    allowed = os.environ.get("VLLM_PLUGINS")
    if by_torchao and spec.engine.kernels == "vllm" and allowed is not None and PLUGIN not in allowed.split(","):
        raise QuantizationError(
            f"VLLM_PLUGINS is {allowed!r}, which keeps vLLM from running {spec.name} on its own kernels.",
            hint=f'Add {PLUGIN} to it, or set kernels = "torchao" under [models.engine].',
        )
    if spec.engine.kernels != "vllm":
        options["kernels"] = spec.engine.kernels
    if spec.engine.quantize_lm_head:
        if not by_torchao or spec.engine.kernels != "vllm":
            raise QuantizationError(
                f"{spec.name} has quantize_lm_head, but is not quantised by TorchAO on vLLM's kernels.",
                hint="Give it a scheme and no other kernels, or leave quantize_lm_head out.",
            )
        options["quantize_lm_head"] = True
    return options


def _with_options(arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the user's in front of ours; options for plug-ins are merged."""
    options = copy.deepcopy(options)  # vLLM writes into the dictionaries, which are part of a frozen catalog entry
    ours, theirs = arguments.get("additional_config"), options.get("additional_config")
    merged: dict[str, Any] = {}
    if isinstance(ours, dict) and isinstance(theirs, dict):
        chancellor = {**ours.get("chancellor", {}), **theirs.get("chancellor", {})}
        merged = {"additional_config": {**theirs, "chancellor": chancellor}}
    return {**arguments, **options, **merged}


def tensor_parallel_size(config: dict[str, Any], gpus: int) -> int:
    """Return the largest number of these GPUs that the attention heads can be split over evenly."""
    heads = int(config.get("num_attention_heads") or 1)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    for size in range(max(gpus, 1), 1, -1):
        if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0):
            return size
    return 1


def context_bytes(config: dict[str, Any], tokens: int) -> int:
    """Return an upper bound of the KV cache for `tokens` tokens: 4 bytes a value, and a block to spare."""
    heads = int(config.get("num_attention_heads") or 1)
    head_dim = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    layers = int(config.get("num_hidden_layers") or 0)
    return 2 * layers * kv_heads * head_dim * 4 * (tokens + 256)
