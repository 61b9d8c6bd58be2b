"""Float8 weights with a scale per row, and float8 activations with a scale per token."""

from collections.abc import Mapping
from typing import Any, Self

import torch

from chancellor.quantization.vllm_plugin.formats.base import (
    Geometry,
    Part,
    UnusableWeightError,
    WeightFormat,
    install,
    plain_weight,
)
from chancellor.quantization.weights import mend_rows_of_zeros

__all__ = ["Float8Format"]


class Float8Format(WeightFormat):
    """Cutlass on GPUs of compute capability 8.9 and higher."""

    @classmethod
    def of(cls, config: Any) -> Self | None:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, PerTensor

        if not isinstance(config, Float8DynamicActivationFloat8WeightConfig):
            return None
        if any(isinstance(one, PerTensor) for one in config.granularity):
            raise UnusableWeightError(
                "One float8 scale for a whole weight (TorchAO's default) is loaded wrongly by vLLM's fused layers. "
                "Quantise the original again with scales per row: chancellor quantize SOURCE DEST --scheme fp8."
            )
        packing = config.packing_format
        usual = (
            str(getattr(packing, "value", packing)) == "plain"
            and config.weight_dtype == config.activation_dtype == torch.float8_e4m3fn
            and config.activation_value_lb is None
            and config.activation_value_ub is None
        )
        return cls(config) if usual and all(isinstance(one, PerRow) for one in config.granularity) else None

    def kernel(self, geometry: Geometry) -> Any:
        from vllm.model_executor.kernels.linear import init_fp8_linear_kernel
        from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym, kFp8StaticChannelSym
        from vllm.platforms import current_platform

        if not current_platform.supports_fp8():
            raise UnusableWeightError(
                "float8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper). Here, use int8."
            )
        return init_fp8_linear_kernel(
            activation_quant_key=kFp8DynamicTokenSym,
            weight_quant_key=kFp8StaticChannelSym,
            input_dtype=geometry.dtype,
            out_dtype=geometry.dtype,
            weight_shape=(geometry.outputs_here, geometry.inputs_here),
            module_name="torchao float8",
        )

    def parts(self, geometry: Geometry) -> dict[str, Part]:
        rows, columns = geometry.outputs_here, geometry.inputs_here
        return {
            "weight": Part((rows, columns), torch.float8_e4m3fn, 0, 1),
            "weight_scale": Part((rows, 1), torch.float32, 0, None),
        }

    def split(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        tensor: Any = mend_rows_of_zeros(plain_weight(weight, "Float8Tensor", (1, weight.shape[1])))
        return {"weight": tensor.qdata, "weight_scale": tensor.scale.reshape(-1, 1).float()}

    def place(self, layer: torch.nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
        weight = torch.nn.Parameter(parts["weight"].t(), requires_grad=False)
        weight.input_dim, weight.output_dim = 0, 1  # for kernels that ask for the layout
        install(layer, weight=weight, weight_scale=parts["weight_scale"], input_scale=None)
