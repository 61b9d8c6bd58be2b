"""Parameters and kernels for weights that are packed into int32: vLLM's "mixed precision" kernels."""

import os
from dataclasses import fields, replace
from typing import Any

import torch

from chancellor.quantization.vllm_plugin.formats.base import Geometry

__all__ = ["choose", "group_scales", "row_scales", "values"]


def choose(geometry: Geometry, weight_type: Any, *, group_size: int, activations: torch.dtype | None = None) -> Any:
    """Return vLLM's kernel for weights of `weight_type` without zero points.

    Raises:
        ValueError: there is none for these sizes on this machine.
    """
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel

    options: dict[str, Any] = {
        "full_weight_shape": (geometry.inputs, geometry.outputs),
        "partition_weight_shape": (geometry.inputs_here, geometry.outputs_here),
        "weight_type": weight_type,
        "act_type": activations or geometry.dtype,
        "group_size": group_size,
        "zero_points": False,
        "out_type": geometry.dtype,
    }
    if any(field.name == "has_g_idx" for field in fields(MPLinearLayerConfig)):  # until vLLM 0.26
        options["has_g_idx"] = False
    config = MPLinearLayerConfig(**options)
    kernel = choose_mp_linear_kernel(config)(
        config, w_q_param_name="weight", w_s_param_name="weight_scale", w_zp_param_name="weight_zero_point"
    )
    if type(kernel).__name__ == "CPUWNA16LinearKernel" and os.environ.get("VLLM_CPU_INT4_W4A8") != "1":
        # For bfloat16 on AMX it would round the activations to int8, by default and for this reason alone.
        kernel.config = replace(config, act_type=torch.float32)
    return kernel


def values(packed: torch.Tensor, *, bits: int) -> Any:
    """Return the parameter of packed values, int32 of shape (out, in * bits / 32)."""
    from vllm.model_executor.parameter import PackedvLLMParameter

    return PackedvLLMParameter(
        data=packed, input_dim=1, output_dim=0, packed_dim=1, packed_factor=32 // bits, weight_loader=_loaded
    )


def group_scales(scales: torch.Tensor) -> Any:
    """Return the parameter of scales of shape (out, groups)."""
    from vllm.model_executor.parameter import GroupQuantScaleParameter

    return GroupQuantScaleParameter(data=scales, input_dim=1, output_dim=0, weight_loader=_loaded)


def row_scales(scales: torch.Tensor) -> Any:
    """Return the parameter of scales of shape (out, 1)."""
    from vllm.model_executor.parameter import ChannelQuantScaleParameter

    return ChannelQuantScaleParameter(data=scales, output_dim=0, weight_loader=_loaded)


def _loaded(*_: Any, **__: Any) -> None:
    raise RuntimeError("These weights are loaded already; start the engine anew to load others.")
