"""Int8 weights with a scale per row: with int8 activations, and with activations as they are."""

from collections.abc import Mapping
from typing import Any, Self

import torch

from chancellor.quantization.vllm_plugin.formats import packed
from chancellor.quantization.vllm_plugin.formats.base import (
    Geometry,
    Part,
    UnusableWeightError,
    WeightFormat,
    install,
    plain_weight,
)

__all__ = ["Int8Format", "Int8WeightOnlyFormat"]

_PER_TENSOR = (
    "One int8 scale for a whole weight is loaded wrongly by vLLM's fused layers. "
    "Quantise the original again with scales per row: chancellor quantize SOURCE DEST --scheme int8."
)


def _refuse_version_1(config: Any) -> None:
    if config.version == 1:
        raise UnusableWeightError(
            f"This is version 1 of {type(config).__name__}, which newer releases of TorchAO do not read any more. "
            "Set version=2, or quantise the original again: chancellor quantize SOURCE DEST."
        )


class _Int8Weights(WeightFormat):
    """Values of shape (out, in) and scales of shape (out, 1)."""

    def parts(self, geometry: Geometry) -> dict[str, Part]:
        rows, columns = geometry.outputs_here, geometry.inputs_here
        return {
            "weight": Part((rows, columns), torch.int8, 0, 1),
            "weight_scale": Part((rows, 1), torch.float32, 0, None),
        }

    def split(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        tensor = plain_weight(weight, "Int8Tensor", (1, weight.shape[1]))
        return {"weight": tensor.qdata, "weight_scale": tensor.scale.reshape(-1, 1).float()}


class Int8Format(_Int8Weights):
    """W8A8, activations rounded for each token: oneDNN or AMX on a CPU, Cutlass on CUDA."""

    @classmethod
    def of(cls, config: Any) -> Self | None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, PerTensor

        if not isinstance(config, Int8DynamicActivationInt8WeightConfig):
            return None
        _refuse_version_1(config)
        both = config.granularity if isinstance(config.granularity, list) else [config.granularity] * 2
        if any(isinstance(one, PerTensor) for one in both):
            raise UnusableWeightError(_PER_TENSOR)
        usual = "ASYMMETRIC" not in str(config.act_mapping_type) and not config.weight_only_decode
        return cls(config) if usual and all(one is None or isinstance(one, PerRow) for one in both) else None

    def kernel(self, geometry: Geometry) -> Any:
        from vllm.model_executor.kernels.linear import init_int8_linear_kernel

        kernel = init_int8_linear_kernel(
            is_channelwise=True, is_static_input_scheme=False, input_symmetric=True, module_name="torchao int8"
        )
        if geometry.dtype != torch.bfloat16 and hasattr(kernel, "process_weights_for_onednn"):
            _take_onednn(kernel)
        return kernel

    def place(self, layer: torch.nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
        install(layer, **parts, input_scale=None, input_zero_point=None, azp_adj=None)


def _take_onednn(kernel: Any) -> None:
    """Keep vLLM's CPU kernel from AMX, which ends the process with float16 and fails with float32."""

    def process(layer: torch.nn.Module) -> None:
        kernel.linear_method = kernel._apply_weights_onednn  # noqa: SLF001 - what its own choice would be without AMX
        kernel.process_weights_for_onednn(layer)

    kernel.process_weights_after_loading = process


class Int8WeightOnlyFormat(_Int8Weights):
    """W8A16: Machete on Hopper, Marlin on older GPUs."""

    @classmethod
    def of(cls, config: Any) -> Self | None:
        from torchao.quantization import Int8WeightOnlyConfig, PerRow, PerTensor

        if not isinstance(config, Int8WeightOnlyConfig):
            return None
        _refuse_version_1(config)
        if isinstance(config.granularity, PerTensor):
            raise UnusableWeightError(_PER_TENSOR)
        return cls(config) if isinstance(config.granularity, PerRow) else None

    def kernel(self, geometry: Geometry) -> Any:
        from vllm.scalar_type import scalar_types

        return packed.choose(geometry, scalar_types.uint8b128, group_size=-1)

    def place(self, layer: torch.nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
        # The kernel's values are unsigned, with zero at 128.
        values = (parts["weight"].view(torch.uint8) ^ 0x80).contiguous().view(torch.int32)
        scales = parts["weight_scale"].to(layer.params_dtype)
        install(layer, weight=packed.values(values, bits=8), weight_scale=packed.row_scales(scales))
