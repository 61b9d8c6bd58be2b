"""The plug-in's rules, without an engine; what its kernels compute is in tests/integration/test_kernels.py."""

import importlib.metadata
import inspect
import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from torchao.core.config import config_to_dict
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    MappingType,
    PerGroup,
    PerRow,
    PerTensor,
)

from chancellor.quantization import SCHEMES
from chancellor.quantization.vllm_plugin.config import AT_LOAD, KernelConfig
from chancellor.quantization.vllm_plugin.formats import Geometry, UnusableWeightError, format_for
from chancellor.quantization.vllm_plugin.formats.int4 import Int4Format
from chancellor.quantization.vllm_plugin.rules import config_of
from chancellor.quantization.weights import quantize_weight

INT8, INT4 = SCHEMES["int8"].config(), SCHEMES["int4wo"].config()
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def rule(prefix: str, config: Any, skipped: tuple[str, ...] = ()) -> Any:
    return config_of(prefix, config, skipped, FUSED)


def test_vllm_finds_it() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert [point.value for point in points if point.name == "chancellor_torchao"] == [
        "chancellor.quantization.vllm_plugin:register"
    ]


def test_registering_replaces_torchao_and_adds_the_schemes() -> None:
    program = (
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.model_executor.layers.quantization import get_quantization_config as get\n"
        f"print(*(get(name).__name__ for name in {['torchao', *AT_LOAD]!r}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-6:] == ["KernelConfig", *(config.__name__ for config in AT_LOAD.values())]
    assert set(AT_LOAD) == {f"torchao-{name}" for name in SCHEMES}


def test_configs_travel_into_the_engines_processes() -> None:
    for config in [*(kind() for kind in AT_LOAD.values()), KernelConfig(INT8, ["lm_head"], True)]:
        again = pickle.loads(pickle.dumps(config))
        assert (type(again), again.torchao_config) == (type(config), config.torchao_config)


def test_what_is_used_of_vllm_is_where_it_was() -> None:
    """A release that moves one of these needs a look at the plug-in."""
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym, kFp8StaticChannelSym
    from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing
    from vllm.model_executor.parameter import (
        ChannelQuantScaleParameter,
        GroupQuantScaleParameter,
        ModelWeightParameter,
        PackedvLLMParameter,
    )

    assert {"is_channelwise", "is_static_input_scheme", "input_symmetric", "module_name"} <= set(
        inspect.signature(linear.init_int8_linear_kernel).parameters
    )
    assert {
        "activation_quant_key",
        "weight_quant_key",
        "input_dtype",
        "out_dtype",
        "weight_shape",
        "module_name",
    } <= set(inspect.signature(linear.init_fp8_linear_kernel).parameters)
    assert {
        "full_weight_shape",
        "partition_weight_shape",
        "weight_type",
        "act_type",
        "group_size",
        "zero_points",
    } <= set(inspect.signature(linear.MPLinearLayerConfig).parameters)
    assert callable(linear.choose_mp_linear_kernel)
    assert list(inspect.signature(initialize_online_processing).parameters) == ["layer"]
    for parameter in (
        ChannelQuantScaleParameter,
        GroupQuantScaleParameter,
        ModelWeightParameter,
        PackedvLLMParameter,
    ):
        assert inspect.isclass(parameter)
    assert kFp8DynamicTokenSym != kFp8StaticChannelSym


def test_one_config_for_all_layers() -> None:
    assert rule("model.layers.0.mlp.down_proj", INT8) is INT8
    assert rule("model.layers.0.self_attn.qkv_proj", INT8) is INT8
    assert rule("lm_head", INT8, ("lm_head",)) is None


def test_skipped_layers() -> None:
    skipped = ("layers.1", "model.layers.2.mlp.down_proj")
    assert rule("model.layers.1.self_attn.o_proj", INT8, skipped) is None
    assert rule("model.layers.11.self_attn.o_proj", INT8, skipped) is INT8
    assert rule("model.layers.2.mlp.down_proj", INT8, skipped) is None
    assert rule("model.layers.2.mlp.gate_up_proj", INT8, skipped) is INT8
    shards = tuple(f"model.layers.3.self_attn.{name}" for name in FUSED["qkv_proj"])
    assert rule("model.layers.3.self_attn.qkv_proj", INT8, shards) is None


def test_rules_for_single_layers() -> None:
    config = FqnToConfig(
        OrderedDict(
            {
                "model.layers.0.mlp.down_proj": INT4,
                "model.layers.0.self_attn.o_proj.weight": None,
                r"re:model\.layers\..+\.(q|k|v)_proj": INT4,
                "_default": INT8,
            }
        )
    )
    assert rule("model.layers.0.mlp.down_proj", config) is INT4
    assert rule("model.layers.1.mlp.down_proj", config) is INT8
    assert rule("model.layers.0.self_attn.o_proj", config) is None
    assert rule("model.layers.5.self_attn.qkv_proj", config) is INT4  # by the names of its parts
    assert rule("model.layers.5.mlp.gate_up_proj", config) is INT8
    assert rule("model.layers.5.mlp.gate_up_proj", FqnToConfig(OrderedDict({"model.layers.0.x": INT8}))) is None


@pytest.mark.parametrize("skipped", [(), ("model.layers.0.self_attn.k_proj",)])
def test_parts_of_one_layer_with_different_configs(skipped: tuple[str, ...]) -> None:
    config = INT8 if skipped else FqnToConfig(OrderedDict({"model.layers.0.self_attn.q_proj": INT4, "_default": INT8}))
    with pytest.raises(UnusableWeightError, match=r"runs model\.layers\.0\.self_attn\.q_proj, .*k_proj.* as one layer"):
        rule("model.layers.0.self_attn.qkv_proj", config, skipped)


def test_schemes_have_formats() -> None:
    found = {name: type(format_for(scheme.config())).__name__ for name, scheme in SCHEMES.items()}
    assert found == {
        "int8": "Int8Format",
        "int8wo": "Int8WeightOnlyFormat",
        "fp8": "Float8Format",
        "int4wo": "Int4Format",
        "int4fp8": "Int4Format",
    }


@pytest.mark.parametrize(
    "config",
    [
        Float8WeightOnlyConfig(set_inductor_config=False),
        Int8WeightOnlyConfig(granularity=PerGroup(64), set_inductor_config=False),
        Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC, set_inductor_config=False),
        Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d", set_inductor_config=False),
    ],
)
def test_what_vllm_has_no_kernel_for_is_left_to_torchao(config: Any) -> None:
    assert format_for(config) is None


@pytest.mark.parametrize(
    "config",
    [
        Int8WeightOnlyConfig(granularity=PerTensor(), set_inductor_config=False),
        Int8DynamicActivationInt8WeightConfig(granularity=PerTensor(), set_inductor_config=False),
        Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False),
    ],
)
def test_one_scale_per_tensor_is_refused(config: Any) -> None:
    with pytest.raises(
        UnusableWeightError, match=r"scales per row: chancellor quantize SOURCE DEST --scheme (int8|fp8)"
    ):
        format_for(config)


def test_configs_of_an_old_torchao_are_refused() -> None:
    old = config_to_dict(INT8)
    old["_data"]["version"], old["_version"] = 1, 1
    with pytest.raises(UnusableWeightError, match="version 1 of the int8 configs"):
        KernelConfig.from_config({"quant_method": "torchao", "quant_type": {"default": old}})
    with pytest.raises(UnusableWeightError, match="quantise the original again"):
        KernelConfig.from_config({"quant_method": "torchao", "quant_type": "int8_weight_only"})


def test_a_checkpoints_config_is_read() -> None:
    stored = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(INT8)}}
    config = KernelConfig.from_config({**stored, "modules_to_not_convert": ["lm_head"]})
    assert (config.torchao_config, config.skip_modules) == (INT8, ["lm_head"])
    assert config.is_checkpoint_torchao_serialized


def weight_for(config: Any) -> Any:
    return quantize_weight(torch.randn(16, 128, dtype=torch.bfloat16), config)


def test_weights_that_are_not_what_the_config_says() -> None:
    wanted = format_for(INT8)
    assert wanted is not None
    assert set(wanted.split(weight_for(INT8))) == {"weight", "weight_scale"}
    with pytest.raises(UnusableWeightError, match=r"has a Int4Tensor where its config\.json promises a Int8Tensor"):
        wanted.split(weight_for(INT4))
    with pytest.raises(UnusableWeightError, match="a scale for each 1x64 weights, not for each 1x128"):
        wanted.split(weight_for(Int8WeightOnlyConfig(granularity=PerGroup(64), set_inductor_config=False)))
    scaled = weight_for(INT8)
    scaled.act_pre_scale = torch.ones(128)
    with pytest.raises(UnusableWeightError, match="act_pre_scale"):
        wanted.split(scaled)
    asymmetric = weight_for(INT4)
    asymmetric.zero_point = torch.ones_like(asymmetric.zero_point)
    four = format_for(INT4)
    assert four is not None
    with pytest.raises(UnusableWeightError, match=r"asymmetric.*--additional-config"):
        four.split(asymmetric)


def test_groups_are_fitted_to_a_layer_that_is_quantised_at_load() -> None:
    four = format_for(INT4)
    assert isinstance(four, Int4Format)
    assert four.fitted(Geometry(1024, 64, 1024, 64, torch.bfloat16)) is four
    assert four.fitted(Geometry(576, 64, 576, 64, torch.bfloat16)).config.group_size == 64
    with pytest.raises(UnusableWeightError, match="A row of 100 weights"):
        four.fitted(Geometry(100, 64, 100, 64, torch.bfloat16))
    with pytest.raises(UnusableWeightError, match="288 inputs on this rank are no whole number of int4 groups of 128"):
        four.kernel(Geometry(576, 64, 288, 64, torch.bfloat16))


def test_dynamic_int8_wants_scales_per_row_on_both_sides() -> None:
    mixed = Int8DynamicActivationInt8WeightConfig(granularity=[PerRow(), PerRow()], set_inductor_config=False)
    assert type(format_for(mixed)).__name__ == "Int8Format"
