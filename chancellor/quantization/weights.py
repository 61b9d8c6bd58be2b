"""One weight, quantised as a TorchAO config says: on any machine, also where TorchAO's own way wants a GPU."""

from typing import TYPE_CHECKING, Any, Final

from chancellor.quantization.int4 import GROUP_SIZE, quantize_int4

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

__all__ = ["GROUP_SIZES", "mend_rows_of_zeros", "quantize_weight"]

GROUP_SIZES: Final = (128, 64, 32)
"""Sizes that int4 groups may have, the preferred one first."""


def quantize_weight(weight: "torch.Tensor", config: "AOBaseConfig") -> "torch.Tensor":
    """Return the weight of a linear layer, shape (out, in), as TorchAO's tensor for `config`."""
    import torch
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8DynamicActivationInt4WeightConfig,
        Int4WeightOnlyConfig,
        quantize_,
    )

    if isinstance(config, Int4WeightOnlyConfig) and _is_plain(config):
        return quantize_int4(weight, config.group_size)
    if isinstance(config, Float8DynamicActivationInt4WeightConfig) and _is_plain(config):
        return quantize_int4(weight, GROUP_SIZE, float8_activations=True)
    if isinstance(config, Float8DynamicActivationFloat8WeightConfig) and _is_per_row(config):
        return mend_rows_of_zeros(_float8(weight, config))
    # TorchAO wants a module, and for some schemes one that is inside of another.
    layers = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
    layers[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize_(layers, config)
    quantized: torch.Tensor = layers[0].weight.data
    return mend_rows_of_zeros(quantized)


def mend_rows_of_zeros(weight: "torch.Tensor") -> "torch.Tensor":
    """Return TorchAO's float8 tensor with zeros where it has divided zero by zero; others as they are.

    A row of zeros, as in the padding of a vocabulary, has no largest value to take the scale from.
    """
    import torch

    tensor: Any = weight
    if type(weight).__name__ != "Float8Tensor" or tensor.qdata.is_meta:
        return weight
    dead = tensor.scale == 0
    if dead.shape[-1] == 1 and bool(dead.any()):
        values = tensor.qdata.view(torch.uint8)
        tensor.qdata = values.masked_fill(dead, 0).view(tensor.qdata.dtype)
        tensor.scale = tensor.scale.masked_fill(dead, 1.0)
    return weight


def _is_per_row(config: Any) -> bool:
    packing = str(getattr(config.packing_format, "value", config.packing_format))
    return packing == "plain" and all(type(one).__name__ == "PerRow" for one in config.granularity)


def _is_plain(config: Any) -> bool:
    packing = config.int4_packing_format
    return str(getattr(packing, "value", packing)) == "plain"


def _float8(weight: "torch.Tensor", config: Any) -> "torch.Tensor":
    """Do what TorchAO's transform does after it has asked for a GPU, bfloat16, and sizes that are multiples of 16."""
    from torchao.quantization import Float8Tensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    activations, weights = config.granularity
    tensor: torch.Tensor = Float8Tensor.from_hp(
        weight,
        float8_dtype=config.weight_dtype,
        granularity=weights,
        mm_config=config.mm_config,
        kernel_preference=config.kernel_preference,
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(
            config.activation_dtype,
            activations,
            hp_value_lb=config.activation_value_lb,
            hp_value_ub=config.activation_value_ub,
            kernel_preference=config.kernel_preference,
        ),
    )
    return tensor
