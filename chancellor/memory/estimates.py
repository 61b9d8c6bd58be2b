"""What an engine will need, before it is started: from its entry and from headers, without loading anything."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chancellor.checkpoints import find, inspect_checkpoint
from chancellor.checkpoints.inspect import read_json
from chancellor.checkpoints.shapes import SHAPE, Shape
from chancellor.errors import SourceNotFoundError
from chancellor.memory import tensors
from chancellor.memory.device import gpu_memories
from chancellor.memory.layout import Layout
from chancellor.memory.weights import weight_bytes
from chancellor.quantization.prepare import prepared_folder
from chancellor.quantization.schemes import SCHEMES, Scheme

if TYPE_CHECKING:
    from chancellor.catalog import ModelSpec

__all__ = ["Estimate", "estimate"]

_MIB: Final = 2**20
_GIB: Final = 2**30
_WIDTHS: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_SPARE_TOKENS: Final = 256  # a block at the end of a context, and vLLM's own that nobody gets
_BATCH_SHARE: Final = 8  # a full batch at an eighth of the context


class _Costs(NamedTuple):
    """Bytes that hardly depend on the model, as they were measured."""

    core: int
    """The process that schedules; on a GPU's own memory it is nothing."""
    rank: int
    """Each process that computes: libraries, a GPU's context, and what loading leaves behind in the heap."""
    split: int
    """More for each rank where there are several, for what they talk through."""
    step: int
    """What stays of the first steps, beyond a step's tensors: kernels made to measure, and their buffers."""
    graphs: int
    graphs_per_layer: int


_COSTS: Final = {
    ("vllm", "cpu"): _Costs(470 * _MIB, 640 * _MIB, 0, 150 * _MIB, 0, 0),
    ("vllm", "cuda"): _Costs(0, 700 * _MIB, 500 * _MIB, 500 * _MIB, 200 * _MIB, 16 * _MIB),
    ("transformers", "cpu"): _Costs(0, 400 * _MIB, 0, 200 * _MIB, 0, 0),
    ("transformers", "cuda"): _Costs(0, 700 * _MIB, 0, 200 * _MIB, 0, 0),
}
_FRONT_END: Final = 560 * _MIB
"""A vLLM front end in a process of its own: its libraries. On a GPU's own memory it is nothing."""
_TOKEN_TEXT: Final = 512  # bytes that the scheduling process keeps for each token of the vocabulary
_HEAP_PIECE: Final = 32 * _MIB  # larger ones are given back to the system at once
_CPU_HEADS: Final = 2  # on a CPU vLLM has two more copies of the output layer, one of them in its kernel's own order


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on each of the devices."""

    devices: tuple[str, ...]
    weights: int
    kv_cache: int
    """What it wants."""
    kv_cache_least: int
    """One whole context and a block: the least that serves."""
    activations: int
    """Peak of a step."""
    graphs: int
    """CUDA graphs."""
    overhead: int
    """The processes themselves: their libraries, a GPU's context, what the ranks of a split model talk through."""

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.graphs + self.overhead

    @property
    def total(self) -> int:
        """With the KV cache that it wants."""
        return self.fixed + self.kv_cache

    @property
    def enough(self) -> int:
        """With half of the KV cache that it wants: before it gets less, others make room."""
        return self.fixed + max(self.kv_cache_least, self.kv_cache // 2)

    @property
    def least(self) -> int:
        """With the least KV cache that serves."""
        return self.fixed + self.kv_cache_least


class _Model(NamedTuple):
    tensors: list[tensors.Tensor]
    layout: Layout
    config: dict[str, Any]
    scheme: Scheme | None
    dtype: str


def estimate(spec: "ModelSpec") -> Estimate:
    """Return what the entry's engine will need. Downloads, loads and quantises nothing, and does not import torch.

    Raises:
        CheckpointError: the checkpoint is broken or unsafe, or not on this machine yet.
        MissingDependencyError: a package that reads it is not installed.
    """
    if spec.engine.kind == "openai":
        return Estimate((), 0, 0, 0, 0, 0, 0)
    gpus = len(gpu_memories())
    model = _model(spec, gpus)
    return _of_vllm(spec, model, gpus) if spec.engine.kind == "vllm" else _of_transformers(spec, model, gpus)


def _model(spec: "ModelSpec", gpus: int) -> _Model:
    options = spec.engine.vllm if spec.engine.kind == "vllm" else {}
    dtype = options.get("dtype", spec.engine.dtype)
    asked = dtype if dtype in _WIDTHS else None
    dtype = asked or _default_dtype(gpus)
    scheme = Scheme.of(spec.scheme) if spec.scheme else None
    if spec.source.startswith(SHAPE):
        shape = Shape.of(spec.source)
        overrides = options.get("hf_overrides")
        changed = overrides if isinstance(overrides, dict) else {}
        layout = Layout.of({**shape.config, **changed})
        known = spec.parameters or (None if changed else shape.known_parameters)
        return _Model(tensors.of_layout(layout, known), layout, shape.config, scheme, dtype)
    checkpoint = find(spec.source, spec.revision)
    if checkpoint is None:
        raise SourceNotFoundError(
            f"{spec.source!r} is not on this machine yet, so that nobody knows what it needs.",
            hint="It is downloaded when the model is first used, or by: chancellor quantize SOURCE DEST.",
        )
    folder = checkpoint.path
    prepared = prepared_folder(checkpoint, spec.scheme, dtype)
    if prepared.is_dir():
        folder = prepared
    if folder.suffix == ".gguf":
        found, config = tensors.of_gguf(folder)
        return _Model(found, Layout.of(config), config, scheme, dtype)
    info = inspect_checkpoint(folder, allow_pickle=spec.allow_pickle, trust_remote_code=spec.trust_remote_code)
    config = read_json(folder / "config.json")
    layout = Layout.of(config)
    pickled = info.format == "pickle"
    found = tensors.of_layout(layout, info.parameters) if pickled else tensors.of_folder(folder)
    if info.quant_method == "torchao":
        scheme = next((one for one in SCHEMES.values() if one.torchao_type == info.torchao_type), None)
        own = config.get("dtype") or config.get("torch_dtype")
        dtype = asked or (own if own in _WIDTHS else dtype)
    return _Model(found, layout, config, scheme, dtype)


def _of_vllm(spec: "ModelSpec", model: _Model, gpus: int) -> Estimate:
    from chancellor.engines import vllm_args  # which the pool's package brings with it, and the pool asks this one

    options, more, layout = spec.engine, spec.engine.vllm, model.layout
    width, platform = _WIDTHS[model.dtype], "cuda" if gpus else "cpu"
    costs = _COSTS["vllm", platform]
    ranks = int(more.get("tensor_parallel_size") or options.tensor_parallel_size or 0)
    ranks = (ranks or vllm_args.tensor_parallel_size(_text(model.config), gpus)) * int(
        more.get("pipeline_parallel_size", 1)
    )
    tokens = _tokens(spec, layout)
    usual = vllm_args.GPU_SEQUENCES if gpus else vllm_args.CPU_SEQUENCES
    sequences = int(more.get("max_num_seqs") or options.max_num_seqs or usual)
    batched = int(more.get("max_num_batched_tokens") or max(vllm_args.BATCHED_TOKENS, tokens))
    eager = more.get("enforce_eager", options.enforce_eager)
    eager = not gpus if eager is None else bool(eager)
    kv_width = 1 if "fp8" in str(more.get("kv_cache_dtype")) else width
    token = layout.token_bytes(kv_width, ranks)
    least = token * (tokens + _SPARE_TOKENS)
    exact = more.get("kv_cache_memory_bytes")  # which wins over what the engine is granted
    given = exact or (options.kv_cache_gib and int(options.kv_cache_gib * _GIB))
    if given:
        cache = int(given)
    elif gpus:
        cache = max(least, token * tokens * sequences // _BATCH_SHARE)
    else:
        cache = max(_GIB, vllm_args.context_bytes(_text(model.config), tokens))
    least = cache if exact else least
    weights = weight_bytes(
        model.tensors,
        model.scheme,
        width,
        tied=layout.tied,
        quantize_head=options.quantize_lm_head,
        head_copies=0 if gpus else _CPU_HEADS - (1 if options.quantize_lm_head else 0),
    )
    here = 1 if gpus else ranks  # ranks on this device
    rank = costs.rank + (costs.split if ranks > 1 else 0)
    core = costs.core + (0 if gpus else layout.vocabulary * _TOKEN_TEXT)
    core += _FRONT_END if options.frontend == "process" and not gpus else 0
    step = costs.step + _activations(layout, batched, sequences, width, ranks)
    return Estimate(
        devices=tuple(f"cuda:{index}" for index in range(ranks)) if gpus else ("cpu",),
        weights=-(-weights // ranks) * here,
        kv_cache=cache * here,
        kv_cache_least=least * here,
        activations=step * here,
        graphs=0 if eager or not gpus else costs.graphs + costs.graphs_per_layer * layout.layers // ranks,
        overhead=core + rank * here,
    )


def _of_transformers(spec: "ModelSpec", model: _Model, gpus: int) -> Estimate:
    from chancellor.engines import vllm_args

    layout, width = model.layout, _WIDTHS[model.dtype]
    # Without TorchAO's kernels for int4, which are a package for GPUs of its own, the weights are unpacked.
    scheme = None if model.scheme and model.scheme.weight_bytes < 1 and not gpus else model.scheme
    tokens = _tokens(spec, layout)
    sequences = spec.engine.max_num_seqs or (vllm_args.GPU_SEQUENCES if gpus else vllm_args.CPU_SEQUENCES)
    costs = _COSTS["transformers", "cuda" if gpus else "cpu"]
    least = layout.token_bytes(width) * (tokens + _SPARE_TOKENS)
    batched = max(tokens, tokens * sequences // _BATCH_SHARE)  # a batch's prompts are one step
    cache = max(least, layout.token_bytes(width) * tokens * sequences // _BATCH_SHARE)
    # Each step writes the whole cache anew, a piece for each layer; the pieces before stay behind in the heap.
    left = min(2 * cache, 4 * layout.layers * _HEAP_PIECE)
    return Estimate(
        devices=("cuda:0",) if gpus else ("cpu",),
        weights=weight_bytes(model.tensors, scheme, width, tied=layout.tied),
        kv_cache=cache,
        kv_cache_least=least,
        activations=costs.step + left + _activations(layout, batched, sequences, width, 1),
        graphs=0,
        overhead=costs.rank,
    )


def _activations(layout: Layout, batched: int, sequences: int, width: int, ranks: int) -> int:
    """Return the peak of a step: a layer's widest moment, and the logits with their float32 copies."""
    mlp = batched * (3 * layout.intermediate // ranks + 4 * layout.hidden) * width
    attention = batched * (2 * (layout.heads + layout.kv_heads) * layout.head_dim // ranks + 4 * layout.hidden) * width
    return max(mlp, attention) + 4 * sequences * layout.vocabulary * 4


def _tokens(spec: "ModelSpec", layout: Layout) -> int:
    asked = spec.engine.vllm.get("max_model_len") if spec.engine.kind == "vllm" else None
    if isinstance(asked, int) and asked > 0:
        return asked
    return min(spec.engine.max_model_len, layout.context or spec.engine.max_model_len)


def _text(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


@lru_cache(maxsize=2)
def _default_dtype(gpus: int) -> str:
    from chancellor.engines.hardware import cpu_has_bfloat16

    return "bfloat16" if gpus or cpu_has_bfloat16() else "float32"
