"""What every format of weights has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch

__all__ = ["Geometry", "Part", "UnusableWeightError", "WeightFormat", "install", "plain_weight"]


class UnusableWeightError(ValueError):
    """Weights that no kernel can run; the message says what to do. A ValueError, as vLLM expects of its plug-ins."""


class Geometry(NamedTuple):
    """Sizes of a linear layer: of all of it, and of the part that this rank holds."""

    inputs: int
    outputs: int
    inputs_here: int
    outputs_here: int
    dtype: torch.dtype
    """Compute type of the activations."""


class Part(NamedTuple):
    """One of the tensors that make up a quantised weight, as it is while loading."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    output_dim: int
    """Dimension along which the layer's outputs lie: what column-parallel and merged layers are cut along."""
    input_dim: int | None
    """Dimension along which its inputs lie, or None where all ranks of a row-parallel layer hold the same."""


class WeightFormat(ABC):
    """One kind of quantised weight: what it is loaded as, and what vLLM's kernel makes of it."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def of(cls, config: Any) -> Self | None:
        """Return the format for a TorchAO config, or None if it is not this one's."""

    @abstractmethod
    def kernel(self, geometry: Geometry) -> Any:
        """Return vLLM's kernel for a layer.

        Raises:
            ValueError: there is none on this machine for these sizes; the message has the reasons.
        """

    @abstractmethod
    def parts(self, geometry: Geometry) -> dict[str, Part]:
        """Return the tensors that the layer is loaded into, by the names they have on the layer."""

    @abstractmethod
    def split(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of TorchAO's tensor.

        Raises:
            UnusableWeightError: it is not of this format.
        """

    @abstractmethod
    def place(self, layer: torch.nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
        """Put the loaded parts on the layer, in the layout that the kernel starts from."""

    def config_for(self, geometry: Geometry) -> Any:  # noqa: ARG002 - int4 needs the sizes
        """Return the TorchAO config by which such a layer is quantised at load."""
        return self.config


def install(layer: torch.nn.Module, **parameters: torch.Tensor | None) -> None:
    """Make the tensors parameters of the layer, in place of those of the same name."""
    for name, tensor in parameters.items():
        if hasattr(layer, name):
            delattr(layer, name)
        if tensor is not None and not isinstance(tensor, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        layer.register_parameter(name, tensor)


def plain_weight(weight: torch.Tensor, kind: str, block: tuple[int, ...]) -> Any:
    """Return TorchAO's tensor after a look at what the kernels cannot honour.

    Args:
        weight: what was loaded.
        kind: class name that it has to have.
        block: shape of the blocks that have to share a scale.

    Raises:
        UnusableWeightError: it is of another kind, or has more to it than values and scales.
    """
    tensor: Any = weight
    if type(weight).__name__ != kind:
        raise UnusableWeightError(
            f"The checkpoint has a {type(weight).__name__} where its config.json promises a {kind}. Quantise it again."
        )
    if tuple(tensor.block_size) != block:
        raise UnusableWeightError(
            f"A {kind} of shape {tuple(weight.shape)} has a scale for each {'x'.join(map(str, tensor.block_size))} "
            f"weights, not for each {'x'.join(map(str, block))}. Quantise the original again with scales per row."
        )
    for name in ("act_pre_scale", "act_quant_scale", "act_quant_zero_point"):
        if getattr(tensor, name, None) is not None:
            raise UnusableWeightError(
                f"This {kind} scales its inputs by {name}, which vLLM's kernels do not. Serve it on TorchAO's path: "
                """--additional-config '{"chancellor": {"kernels": "torchao"}}'."""
            )
    zero_point = getattr(tensor, "zero_point", None)
    if zero_point is not None and bool(zero_point.any()):
        raise UnusableWeightError(
            f"This {kind} is asymmetric: its zero points are not zero. Quantise the original again, symmetrically, or "
            """serve it on TorchAO's path: --additional-config '{"chancellor": {"kernels": "torchao"}}'."""
        )
    return tensor
