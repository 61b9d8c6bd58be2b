"""Int4 weights in groups: with activations as they are, and with float8 activations."""

from collections.abc import Mapping
from typing import Any, Self

import torch

from chancellor.quantization.int4 import GROUP_SIZE
from chancellor.quantization.vllm_plugin.formats import packed
from chancellor.quantization.vllm_plugin.formats.base import (
    Geometry,
    Part,
    UnusableWeightError,
    WeightFormat,
    install,
    plain_weight,
)
from chancellor.quantization.weights import GROUP_SIZES

__all__ = ["Int4Format"]


class Int4Format(WeightFormat):
    """W4A16 (Machete on Hopper, Marlin on older GPUs, AMX or AVX512 on a CPU) and W4A8 (Cutlass on Hopper).

    While loading: two values in a byte, shape (out, in / 2), and scales of shape (out, in / group).
    """

    def __init__(self, config: Any, group_size: int, *, float8_activations: bool) -> None:
        super().__init__(config)
        self.group_size, self.float8_activations = group_size, float8_activations

    @classmethod
    def of(cls, config: Any) -> Self | None:
        from torchao.quantization import Float8DynamicActivationInt4WeightConfig, Int4WeightOnlyConfig

        if not isinstance(config, Float8DynamicActivationInt4WeightConfig | Int4WeightOnlyConfig):
            return None
        packing = config.int4_packing_format
        if str(getattr(packing, "value", packing)) != "plain":
            return None
        if isinstance(config, Int4WeightOnlyConfig):
            return cls(config, config.group_size, float8_activations=False)
        return cls(config, GROUP_SIZE, float8_activations=True)

    def config_for(self, geometry: Geometry) -> Any:
        if self.float8_activations or geometry.inputs_here % self.group_size == 0:
            return self.config
        from dataclasses import replace

        return replace(self.config, group_size=self._group_size(geometry))

    def _group_size(self, geometry: Geometry) -> int:
        """Return the size of the groups of a layer that is quantised at load: the largest that fits."""
        for size in (self.group_size, *GROUP_SIZES):
            if size <= self.group_size and geometry.inputs_here % size == 0:
                return size
        raise UnusableWeightError(
            f"A row of {geometry.inputs_here} weights has no whole number of int4 groups. Skip the layer, use a scheme "
            "with a scale per row (int8, int8wo, fp8), or fewer tensor-parallel ranks."
        )

    def fitted(self, geometry: Geometry) -> Self:
        """Return the format with groups that fit a layer's rows, for quantising at load."""
        config = self.config_for(geometry)
        return self if config is self.config else type(self)(config, config.group_size, float8_activations=False)

    def kernel(self, geometry: Geometry) -> Any:
        from vllm.scalar_type import scalar_types

        if geometry.inputs_here % self.group_size:
            raise UnusableWeightError(
                f"{geometry.inputs_here} inputs on this rank are no whole number of int4 groups of {self.group_size}. "
                "Use fewer tensor-parallel ranks, or quantise the original again with smaller groups."
            )
        if geometry.dtype == torch.float32:
            raise UnusableWeightError("No int4 kernel of vLLM's takes float32: use bfloat16 or float16 as dtype.")
        if self.float8_activations:
            return packed.choose(
                geometry, scalar_types.int4, group_size=self.group_size, activations=torch.float8_e4m3fn
            )
        return packed.choose(geometry, scalar_types.uint4b8, group_size=self.group_size)

    def parts(self, geometry: Geometry) -> dict[str, Part]:
        rows, columns = geometry.outputs_here, geometry.inputs_here
        return {
            "weight": Part((rows, columns // 2), torch.int8, 0, 1),
            "weight_scale": Part((rows, columns // self.group_size), geometry.dtype, 0, 1),
        }

    def split(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        tensor = plain_weight(weight, "Int4Tensor", (1, self.group_size))
        return {"weight": tensor.qdata.view(torch.int8), "weight_scale": tensor.scale.t()}

    def place(self, layer: torch.nn.Module, parts: Mapping[str, torch.Tensor]) -> None:
        # The kernels' values are unsigned, with zero at 8: the highest bit of each half turned.
        values = (parts["weight"].view(torch.uint8) ^ 0x88).contiguous().view(torch.int32)
        scales = packed.group_scales(parts["weight_scale"].contiguous())
        install(layer, weight=packed.values(values, bits=4), weight_scale=scales)
