"""Symmetric int4 weights in TorchAO's format, made without the GPU library that TorchAO's own quantiser needs."""

from typing import TYPE_CHECKING, Any, Final

from chancellor.errors import QuantizationError

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP_SIZE", "dequantize_int4", "pack_int4", "quantize_int4", "unpack_int4"]

GROUP_SIZE: Final = 128
_LEVELS: Final = 7.5  # half the distance between the ends of [-8, 7]: no value is further than half a step away
_BLOCK: Final = 2**24  # weights at a time, as float32 copies of a whole vocabulary would fill a GPU


def quantize_int4(
    weight: "torch.Tensor", group_size: int = GROUP_SIZE, *, float8_activations: bool = False
) -> "torch.Tensor":
    """Round a weight to the nearest of 16 levels, with a scale for each group along a row.

    Args:
        weight: shape (out, in).
        group_size: how many weights of a row share a scale; it divides `in`.
        float8_activations: whether the layer's inputs are to be rounded to float8.

    Returns:
        An Int4Tensor of the plain packing, whose zero points are zeros.

    Raises:
        QuantizationError: the groups do not fit the rows.
    """
    import torch
    from torchao.quantization import Int4Tensor

    columns = weight.shape[1]
    if columns % group_size:
        raise QuantizationError(
            f"A row of {columns} weights has no whole number of groups of {group_size}.",
            hint="Skip the layer, or use a scheme with a scale per row (int8, int8wo, fp8).",
        )
    blocks = [_rounded(block, group_size) for block in weight.split(max(1, _BLOCK // columns))]
    scale = torch.cat([scales for _, scales in blocks]).t().contiguous()
    tensor: torch.Tensor = Int4Tensor(
        qdata=torch.cat([packed for packed, _ in blocks]),
        scale=scale,
        zero_point=torch.zeros_like(scale),
        block_size=[1, group_size],
        shape=weight.shape,
        activation_dtype=torch.float8_e4m3fn if float8_activations else torch.bfloat16,
    )
    return tensor


def _rounded(weight: "torch.Tensor", group_size: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return packed levels, shape (out, in / 2), and scales, shape (out, groups)."""
    import torch

    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group_size, group_size).float()
    # The scale is rounded to what is stored before it is used, so that it is exact.
    smallest = torch.finfo(weight.dtype).tiny  # groups of zeros need a scale, too
    scale = (groups.abs().amax(dim=-1, keepdim=True) / _LEVELS).clamp(min=smallest).to(weight.dtype)
    levels = (groups / scale.float()).round().clamp(-8, 7).to(torch.int8).reshape(rows, columns)
    return pack_int4(levels), scale.squeeze(-1)


def dequantize_int4(weight: "torch.Tensor") -> "torch.Tensor":
    """Return an Int4Tensor's values as a plain tensor of its own type; TorchAO has no such function."""
    tensor: Any = weight
    rows, columns = weight.shape
    scale, zero = ((part.t().float().unsqueeze(-1)) for part in (tensor.scale, tensor.zero_point))
    levels = unpack_int4(tensor.qdata).float().reshape(rows, -1, tensor.block_size[1])
    return (levels * scale + zero).reshape(rows, columns).to(weight.dtype)


def pack_int4(levels: "torch.Tensor") -> "torch.Tensor":
    """Return int8 values from -8 to 7, shape (out, in), two in a byte, the first in the low half: (out, in / 2)."""
    low, high = levels[:, ::2], levels[:, 1::2]
    return (low & 0xF) | (high << 4)


def unpack_int4(packed: "torch.Tensor") -> "torch.Tensor":
    """Undo `pack_int4`."""
    import torch

    packed = packed.view(torch.int8)
    return torch.stack(((packed << 4) >> 4, packed >> 4), dim=-1).reshape(packed.shape[0], -1)
