"""vLLM's parallel layers, loaded from TorchAO's weights by several ranks, against the float64 product of the whole.

python tests/integration/parallel_layers.py --ranks 2 --schemes int8,int4wo --json FILE
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from chancellor.quantization.vllm_plugin import register
from tests.integration.kernel_errors import bound, dequantized, start

HIDDEN, HEAD, HEADS, WIDE = 512, 64, 8, 1024
KINDS = ("column", "row", "gate_up", "gate_up in one", "qkv", "qkv in one", "qkv with one kv head", "replicated")


def quantization(scheme: str, columns: int, *, serialized: bool) -> Any:
    from chancellor.quantization import SCHEMES
    from chancellor.quantization.vllm_plugin.config import KernelConfig

    return KernelConfig(SCHEMES[scheme].config_for([columns]), [], serialized)


def build(kind: str, config: Any) -> tuple[Any, list[tuple[Any, int]], int]:
    """Return a layer, what is loaded into it (shard id and outputs), and its number of inputs."""
    from vllm.model_executor.layers import linear

    more = {"bias": True, "quant_config": config, "prefix": "layer", "return_bias": False}
    if kind == "column":
        return linear.ColumnParallelLinear(HIDDEN, WIDE, **more), [(None, WIDE)], HIDDEN
    if kind == "row":
        return linear.RowParallelLinear(WIDE, HIDDEN, **more), [(None, HIDDEN)], WIDE
    if kind.startswith("gate_up"):
        return linear.MergedColumnParallelLinear(HIDDEN, [WIDE, WIDE], **more), [(0, WIDE), (1, WIDE)], HIDDEN
    if kind == "replicated":
        return linear.ReplicatedLinear(HIDDEN, WIDE, **more), [(None, WIDE)], HIDDEN
    kv_heads = 1 if "one kv head" in kind else 2
    layer = linear.QKVParallelLinear(HIDDEN, HEAD, HEADS, kv_heads, **more)
    return layer, [("q", HEADS * HEAD), ("k", kv_heads * HEAD), ("v", kv_heads * HEAD)], HIDDEN


def check(kind: str, scheme: str, ranks: int, rank: int, *, serialized: bool) -> dict[str, Any]:
    """Return the largest error as a share of its bound; each rank looks at its own outputs."""
    from chancellor.quantization.weights import quantize_weight

    columns = WIDE if kind == "row" else HIDDEN
    config = quantization(scheme, columns // ranks if kind == "row" else columns, serialized=serialized)
    layer, shards, inputs = build(kind, config)
    torch.manual_seed(7)  # the same for all ranks
    exact, weights, biases = [], [], []
    for _, outputs in shards:
        weight = torch.randn(outputs, inputs) * 0.02
        # At load, each rank of a row-parallel layer takes the scales of its own part.
        parts = weight.chunk(ranks, dim=1) if kind == "row" and not serialized else [weight]
        exact.append(torch.cat([dequantized(quantize_weight(part, config.torchao_config)) for part in parts], dim=1))
        weights.append(weight)
        biases.append(torch.randn(outputs))
    pieces = list(zip([shard for shard, _ in shards], weights, biases, strict=True))
    if kind.endswith("in one"):  # as some checkpoints have it
        pieces = [(None, torch.cat(weights), torch.cat(biases))]
    for shard, weight, bias in pieces:
        extra = () if shard is None else (shard,)
        loaded = quantize_weight(weight, config.torchao_config) if serialized else weight
        layer.weight.weight_loader(layer.weight, loaded, *extra)
        layer.bias.weight_loader(layer.bias, bias, *extra)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(19, inputs)
    if kind == "row":
        part = inputs // ranks
        output = layer(x[:, rank * part : (rank + 1) * part].contiguous())  # and sums over the ranks
        wanted, added = exact[0], biases[0]  # which only the first rank adds
    else:
        output = layer(x)
        wanted = torch.cat([mine(whole, kind, index, ranks, rank) for index, whole in enumerate(exact)])
        added = torch.cat([mine(whole, kind, index, ranks, rank) for index, whole in enumerate(biases)])
    product = x.double() @ wanted.t() + added.double()
    limit = bound(scheme, x.double(), wanted, product)
    if kind == "row":
        limit *= 2  # each rank's part of the sum is rounded by itself
    worst = float(((output.double() - product).abs() / limit).max())
    kernel = type(layer.quant_method.kernel).__name__
    return {"kind": kind, "scheme": scheme, "serialized": serialized, "rank": rank, "worst": worst, "kernel": kernel}


def mine(whole: torch.Tensor, kind: str, index: int, ranks: int, rank: int) -> torch.Tensor:
    """Return the rows that this rank holds."""
    if kind == "replicated" or ("one kv head" in kind and index > 0):  # the only kv head is on every rank
        return whole
    size = whole.shape[0] // ranks
    return whole[rank * size : (rank + 1) * size]


def worker(rank: int, options: Any, meeting: str) -> None:
    register()
    torch.set_num_threads(1)
    found = []
    with ExitStack() as stack:
        start(torch.bfloat16, stack, ranks=options.ranks, rank=rank, meeting=f"{meeting}/ranks")
        for scheme in options.schemes.split(","):
            for kind in KINDS:
                both = (True, False)
                found += [check(kind, scheme, options.ranks, rank, serialized=serialized) for serialized in both]
        torch.distributed.barrier()
    Path(f"{meeting}/{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def main(spawn: Callable[..., None] = torch.multiprocessing.spawn) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--schemes", default="int8,int4wo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as meeting:
        spawn(worker, (options, meeting), nprocs=options.ranks)
        found = [row for file in sorted(Path(meeting).glob("*.json")) for row in json.loads(file.read_text("utf-8"))]
    for row in found:
        how = "checkpoint" if row["serialized"] else "at load"
        print(f"{row['scheme']}, {row['kind']}, {how}, rank {row['rank']}: error / bound {row['worst']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
