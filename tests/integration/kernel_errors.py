"""Errors of single layers on vLLM's kernels against the float64 product, and the bound that each scheme implies.

python tests/integration/kernel_errors.py --schemes int8,int4wo --json FILE
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from chancellor.quantization.vllm_plugin import register

HALF_ULP = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float32: 2.0**-24}
FLOAT8_HALF_ULP = 2.0**-4
FLOAT8_SMALLEST = 2.0**-10
"""Half of e4m3's smallest step, as a share of 1/448 of the largest value."""


def dequantized(weight: Any) -> torch.Tensor:
    """Return TorchAO's tensor as float64, by its own definition."""
    from chancellor.quantization.int4 import unpack_int4

    if type(weight).__name__ == "Int4Tensor":
        values = unpack_int4(weight.qdata).double()
        groups = weight.scale.t().double().repeat_interleave(weight.block_size[1], dim=1)
        return values * groups
    return weight.qdata.double() * weight.scale.double().reshape(-1, 1)


def bound(scheme: str, x: torch.Tensor, weight: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Return the largest error that rounding can make in each output; x, weight and product in float64."""
    size = x.abs() @ weight.abs().t()
    largest = x.abs().amax(dim=1, keepdim=True)
    half_ulp = HALF_ULP[torch.get_default_dtype()]
    numbers = torch.finfo(torch.get_default_dtype())
    # The output is rounded to the compute type, and so are weights and partial sums inside some kernels.
    error = 2 * half_ulp * product.abs() + 2 * half_ulp * size + numbers.smallest_normal * numbers.eps
    if scheme == "int8":
        error += 0.5 * (largest / 127) * weight.abs().sum(dim=1)
    if scheme in ("fp8", "int4fp8"):
        rounded = torch.maximum(x.abs() * FLOAT8_HALF_ULP, largest / 448 * FLOAT8_SMALLEST)
        error += rounded @ weight.abs().t() + 2.0**-10 * size  # Hopper's float8 units sum with fewer bits
    if scheme == "int4fp8":
        error += FLOAT8_HALF_ULP * size  # this kernel keeps the groups' scales in float8
    return error


def layer_of(scheme: str, weight: torch.Tensor, bias: torch.Tensor | None, *, serialized: bool) -> tuple[Any, ...]:
    """Return the method, a layer that was loaded through it, and the dequantised weight."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.utils import set_weight_attrs

    from chancellor.quantization import SCHEMES
    from chancellor.quantization.vllm_plugin.formats import format_for
    from chancellor.quantization.vllm_plugin.method import KernelLinearMethod
    from chancellor.quantization.weights import quantize_weight

    rows, columns = weight.shape
    config = SCHEMES[scheme].config_for([columns])
    quantized = quantize_weight(weight, config)
    formats = format_for(config)
    assert formats is not None
    method = KernelLinearMethod(formats, UnquantizedLinearMethod(), serialized=serialized)
    layer = torch.nn.Module()
    layer.quant_method = method  # which vLLM calls when the last weight is loaded

    def load(param: torch.Tensor, loaded: torch.Tensor) -> None:  # vLLM looks for "param"
        param.data.copy_(loaded)

    method.create_weights(layer, columns, [rows], columns, rows, weight.dtype, weight_loader=load)
    assert method.kernel is not None, "no kernel"
    parameter = None if bias is None else torch.nn.Parameter(torch.empty_like(bias), requires_grad=False)
    layer.register_parameter("bias", parameter)  # vLLM's layers have it only now
    if parameter is not None:
        set_weight_attrs(parameter, {"weight_loader": load})
    layer.weight.weight_loader(layer.weight, quantized if serialized else weight)
    if parameter is not None:
        layer.bias.weight_loader(layer.bias, bias)
    method.process_weights_after_loading(layer)
    return method, layer, dequantized(quantized)


def cases(schemes: list[str], seed: int) -> Iterator[tuple[str, int, int, int, bool]]:
    """Yield scheme, outputs, inputs, batch, and whether the weight comes quantised."""
    generator = random.Random(seed)
    for scheme in schemes:
        step = 128 if scheme == "int4fp8" else 32
        shapes = [(576, 1536), (1536, 576), (960, 576), (4096, 4096), (6144, 4096)]
        shapes += [(step * generator.randint(1, 40), step * generator.randint(1, 40)) for _ in range(6)]
        if scheme == "int8":
            shapes += [(17 * 16, 48), (49152, 576)]
        for rows, columns in shapes:
            if scheme == "int4fp8" and (rows % 128 or columns % 128):
                continue
            if scheme in ("int4wo", "int8wo") and torch.cuda.is_available() and (rows % 128 or columns % 64):
                columns, rows = -(-columns // 64) * 64, -(-rows // 128) * 128  # Machete's
            for batch in (1, 2, 7, 32, generator.randint(33, 300), 4096):
                if rows * columns * batch < 3e10:
                    yield scheme, rows, columns, batch, generator.random() < 0.5


def measure(schemes: list[str], seed: int) -> list[dict[str, Any]]:
    """Return a row of figures for each case; `worst` is the largest error as a share of its bound."""
    found: list[dict[str, Any]] = []
    made: dict[tuple[Any, ...], Any] = {}
    for scheme, rows, columns, batch, serialized in cases(schemes, seed):
        key = (scheme, rows, columns, serialized)
        if key not in made:
            made.clear()
            torch.manual_seed(crc32(repr(key).encode()) + seed)
            weight = torch.randn(rows, columns) * torch.rand(rows, 1) * 0.05
            weight[rows // 2] = 0.0  # a row of zeros has no scale of its own
            bias = torch.randn(rows) if rows % 3 else None
            made[key] = layer_of(scheme, weight, bias, serialized=serialized)
        method, layer, exact = made[key]
        x = torch.randn(batch, columns) * (1 + 9 * (torch.rand(columns) < 0.01))  # a few channels are large
        output = method.apply(layer, x, layer.bias)
        product = x.double() @ exact.t()
        if layer.bias is not None:
            product += layer.bias.double()
        error = (output.double() - product).abs()
        limit = bound(scheme, x.double(), exact, product)
        found.append(
            {
                "scheme": scheme,
                "kernel": type(method.kernel).__name__,
                "outputs": rows,
                "inputs": columns,
                "batch": batch,
                "at_load": not serialized,
                "bias": layer.bias is not None,
                "finite": bool(output.isfinite().all()),
                "worst": float((error / limit.clamp(min=1e-12)).max()),
                "relative": float(error.norm() / product.norm()),
            }
        )
    return found


def start(dtype: torch.dtype, stack: ExitStack, *, ranks: int = 1, rank: int = 0, meeting: str = "") -> None:
    """Make this process a vLLM worker, until the stack is closed; the ranks meet at a file."""
    import tempfile

    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    cuda = torch.cuda.is_available()
    torch.set_default_dtype(dtype)
    os.environ.setdefault("VLLM_DIST_IDENT", Path(meeting).parent.name or "alone")  # vLLM's ranks on a CPU meet there
    if cuda:
        torch.cuda.set_device(rank)
        torch.set_default_device(f"cuda:{rank}")
    config = VllmConfig(device_config=DeviceConfig("cuda" if cuda else "cpu"))
    stack.enter_context(set_current_vllm_config(config))
    meeting = meeting or f"{stack.enter_context(tempfile.TemporaryDirectory())}/meeting"
    init_distributed_environment(ranks, rank, f"file://{meeting}", rank, "nccl" if cuda else "gloo")
    stack.callback(destroy_distributed_environment)  # NCCL may hang at exit otherwise
    initialize_model_parallel(ranks)
    stack.callback(destroy_model_parallel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", default="int8,int4wo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-amx", action="store_true", help="take the kernels of a CPU without AMX")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.without_amx:
        torch.cpu._is_amx_tile_supported = lambda: False
    register()
    with ExitStack() as stack:
        start(getattr(torch, options.dtype), stack)
        found = measure(options.schemes.split(","), options.seed)
    for scheme in options.schemes.split(","):
        rows = [row for row in found if row["scheme"] == scheme]
        kernels = ", ".join(sorted({row["kernel"] for row in rows}))
        worst, middle = max(row["worst"] for row in rows), sorted(row["relative"] for row in rows)[len(rows) // 2]
        print(f"{scheme}: {len(rows)} cases on {kernels}; error / bound {worst:.2f}, relative {middle:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
