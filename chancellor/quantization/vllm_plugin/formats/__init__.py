"""The kinds of quantised weights that vLLM has kernels for."""

from typing import Any

from chancellor.quantization.vllm_plugin.formats.base import Geometry, UnusableWeightError, WeightFormat
from chancellor.quantization.vllm_plugin.formats.float8 import Float8Format
from chancellor.quantization.vllm_plugin.formats.int4 import Int4Format
from chancellor.quantization.vllm_plugin.formats.int8 import Int8Format, Int8WeightOnlyFormat

__all__ = ["Geometry", "UnusableWeightError", "WeightFormat", "format_for"]

_FORMATS: tuple[type[WeightFormat], ...] = (Int8Format, Int8WeightOnlyFormat, Float8Format, Int4Format)


def format_for(config: Any) -> WeightFormat | None:
    """Return the format for weights quantised by a TorchAO config, or None where vLLM has no kernel for them.

    Raises:
        UnusableWeightError: such weights would be served wrongly, or not at all.
    """
    for kind in _FORMATS:
        if (found := kind.of(config)) is not None:
            return found
    return None
