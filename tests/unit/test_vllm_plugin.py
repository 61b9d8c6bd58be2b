"""The plug-in's rules, without an engine; what its kernels compute is in tests/integration/test_kernels.py."""

import importlib.metadata
import inspect
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

from chancellor import ModelSpec, errors
from chancellor.engines.logs import refusal_in
from chancellor.engines.vllm_args import _plug_in_options
from chancellor.quantization import SCHEMES
from chancellor.quantization.prepare import Prepared
from chancellor.quantization.vllm_plugin import register
from chancellor.quantization.vllm_plugin.config import AT_LOAD, KernelConfig, Options
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
        Int8WeightOnlyConfig(granularity=PerGroup(64), set_inductor_config=False, version=2),
        Int8DynamicActivationInt8WeightConfig(
            act_mapping_type=MappingType.ASYMMETRIC, set_inductor_config=False, version=2
        ),
        Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d", set_inductor_config=False),
        Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), weight_dtype=torch.float8_e5m2, set_inductor_config=False
        ),
    ],
)
def test_what_vllm_has_no_kernel_for_is_left_to_torchao(config: Any) -> None:
    assert format_for(config) is None


@pytest.mark.parametrize(
    "config",
    [
        Int8WeightOnlyConfig(granularity=PerTensor(), set_inductor_config=False, version=2),
        Int8DynamicActivationInt8WeightConfig(granularity=PerTensor(), set_inductor_config=False, version=2),
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
    with pytest.raises(UnusableWeightError, match="ersion 1 of"):  # TorchAO 0.17 reads it, 0.18 does not
        format_for(KernelConfig.from_config({"quant_method": "torchao", "quant_type": {"default": old}}).torchao_config)
    with pytest.raises(UnusableWeightError, match="quantise the original again"):
        KernelConfig.from_config({"quant_method": "torchao", "quant_type": "int8_weight_only"})


def test_quantising_what_is_quantised_already() -> None:
    stored = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(INT8)}}
    with pytest.raises(UnusableWeightError, match="torchao-int4wo quantises an unquantised checkpoint"):
        AT_LOAD["torchao-int4wo"].from_config(stored)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": "vllm"}, "has no kernel for chancellor. There are: kernels, quantize_lm_head, skip"),
        ({"kernels": "mine"}, "kernels is vllm or torchao, not 'mine'"),
        ({"quantize_lm_head": "yes"}, "true or false"),
        ({"skip": "lm_head"}, "skip a list of names"),
        ({"quantize_lm_head": True, "kernels": "torchao"}, "leave out one of"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with options(given), pytest.raises(ValueError, match=message):
        Options.given()


def test_options() -> None:
    with options({}):
        assert Options.given() == Options("vllm", quantize_lm_head=False, skip=())
    with options({"quantize_lm_head": True, "skip": ["down_proj"]}):
        assert Options.given() == Options("vllm", quantize_lm_head=True, skip=["down_proj"])


@contextmanager
def options(given: dict[str, Any]) -> Iterator[None]:
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig(additional_config={"chancellor": given})):
        yield


def test_rules_take_the_names_that_vllm_gives() -> None:
    from vllm.model_executor.models.utils import WeightsMapper

    mapper = WeightsMapper(orig_to_new_prefix={"model.vision_tower.": "vision_tower."})
    rules = {"model.vision_tower.mlp": None, "re:.*q_proj": INT4, "_default": INT8}
    config = KernelConfig(FqnToConfig(OrderedDict(rules)), ["model.vision_tower.head", "lm_head"], True)
    config.apply_vllm_mapper(mapper)
    assert config.skip_modules == ["vision_tower.head", "lm_head"]
    assert dict(config.torchao_config.fqn_to_config) == {
        "vision_tower.mlp": None,
        "re:.*q_proj": INT4,
        "_default": INT8,
    }


def test_a_plug_in_that_does_not_fit_ends_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chancellor.quantization.vllm_plugin.config", None)
    register()


def test_why_weights_were_refused_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("(Worker) ERROR a.b.UnusableWeightError: Old.\n", encoding="utf-8")
    size = log.stat().st_size
    assert refusal_in(log, size) is None
    with log.open("a", encoding="utf-8") as file:
        file.write("ERROR [x.py:1] chancellor.base.UnusableWeightError: Use int8.\nRuntimeError: Engine failed\n")
    assert refusal_in(log, size) == "Use int8."
    assert refusal_in(log, 0) == "Use int8."


def spec(**engine: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "source": "shape:nano", "trinity": 96, "engine": engine})


def test_what_the_plug_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    int8, plain = (Prepared(Path(), scheme, None, 1) for scheme in ("int8", None))
    assert _plug_in_options(spec(), int8) == {}
    assert _plug_in_options(spec(kernels="torchao"), int8) == {"kernels": "torchao"}
    assert _plug_in_options(spec(quantize_lm_head=True), int8) == {"quantize_lm_head": True}
    at_load = spec(quantize_lm_head=True, vllm={"quantization": "torchao-int8"})
    assert _plug_in_options(at_load, plain) == {"quantize_lm_head": True}
    for model, prepared in (
        (spec(quantize_lm_head=True), plain),
        (spec(quantize_lm_head=True), Prepared(Path(), "gptq", None, 1)),
        (spec(quantize_lm_head=True, kernels="torchao"), int8),
    ):
        with pytest.raises(errors.QuantizationError, match="has quantize_lm_head, but"):
            _plug_in_options(model, prepared)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert _plug_in_options(spec(), plain) == {}
    assert _plug_in_options(spec(kernels="torchao"), int8) == {"kernels": "torchao"}
    with pytest.raises(errors.QuantizationError, match=r"VLLM_PLUGINS is 'other'(.|\n)*Add chancellor_torchao"):
        _plug_in_options(spec(), int8)
    monkeypatch.setenv("VLLM_PLUGINS", "other,chancellor_torchao")
    assert _plug_in_options(spec(), int8) == {}


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
        wanted.split(weight_for(Int8WeightOnlyConfig(granularity=PerGroup(64), set_inductor_config=False, version=2)))
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
    mixed = Int8DynamicActivationInt8WeightConfig(
        granularity=[PerRow(), PerRow()], set_inductor_config=False, version=2
    )
    assert type(format_for(mixed)).__name__ == "Int8Format"
