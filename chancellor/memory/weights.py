"""What a model's weights take in memory, once they are quantised and in the compute type."""

from collections.abc import Iterable
from typing import Final

from chancellor.memory.tensors import Tensor
from chancellor.quantization.schemes import Scheme
from chancellor.quantization.weights import GROUP_SIZES

__all__ = ["weight_bytes"]

_SCALE: Final = 4  # bytes of a row's scale


def weight_bytes(
    tensors: Iterable[Tensor],
    scheme: Scheme | None,
    width: int,
    *,
    tied: bool,
    quantize_head: bool = False,
    head_copies: int = 0,
) -> int:
    """Return the bytes of all weights.

    Args:
        tensors: of the checkpoint.
        scheme: what the linear layers are quantised with.
        width: bytes of a value in the compute type.
        tied: whether the output layer is the embedding.
        quantize_head: whether the output layer is quantised as well.
        head_copies: how many more copies of the output layer an engine keeps, unquantised.
    """
    total, table, head = 0, None, None
    for tensor in tensors:
        if tensor.stored is not None:
            total += tensor.stored
        elif tensor.kind == "head":
            head = tensor  # one that is in the files although it is tied is not loaded
        else:
            total += _bytes(tensor, scheme if tensor.kind == "linear" else None, width)
            table = tensor if tensor.kind == "embedding" else table
    head = table if tied or head is None else head
    if head is None:
        return total
    total += head_copies * _bytes(head, None, width)
    if quantize_head and scheme is not None:
        return total + _bytes(head, scheme, width)
    return total if tied else total + _bytes(head, None, width)


def _bytes(tensor: Tensor, scheme: Scheme | None, width: int) -> int:
    if scheme is None or not tensor.columns:
        return tensor.values * width
    if scheme.weight_bytes >= 1:
        scales = tensor.values // tensor.columns * _SCALE
    else:
        group = next((size for size in GROUP_SIZES if tensor.columns % size == 0), GROUP_SIZES[-1])
        scales = tensor.values // group * width
    return int(tensor.values * scheme.weight_bytes) + scales
