import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chancellor import errors
from chancellor.quantization.int4 import dequantize_int4, pack_int4, quantize_int4, unpack_int4
from chancellor.quantization.schemes import SCHEMES
from chancellor.quantization.weights import quantize_weight


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_packing_loses_nothing(rows: int, pairs: int, seed: int) -> None:
    torch.manual_seed(seed)
    levels = torch.randint(-8, 8, (rows, 2 * pairs), dtype=torch.int8)
    packed = pack_int4(levels)
    assert packed.shape == (rows, pairs)
    assert torch.equal(unpack_int4(packed), levels)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([(torch.float32, 0.5001), (torch.bfloat16, 0.53), (torch.float16, 0.504)]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_no_weight_is_further_than_half_a_step_from_its_level(
    rows: int, groups: int, size: int, kind: tuple[torch.dtype, float], seed: int
) -> None:
    dtype, most = kind  # a scale that was rounded down leaves the largest weights a little further away
    torch.manual_seed(seed)
    weight = (torch.randn(rows, groups * size) * (0.1 + torch.rand(rows, 1))).to(dtype)
    weight[0] = 0.0
    tensor = quantize_int4(weight, size)
    scales = tensor.scale.float().t().repeat_interleave(size, dim=1)
    error = (unpack_int4(tensor.qdata).float() * scales - weight.float()).abs()
    assert (error <= most * scales).all()
    assert not tensor.zero_point.any()
    assert torch.equal(dequantize_int4(tensor), (unpack_int4(tensor.qdata).float() * scales).to(dtype))


def test_it_is_the_format_that_torchao_documents() -> None:
    tensor = quantize_int4(torch.randn(6, 256, dtype=torch.bfloat16), float8_activations=True)
    assert (tuple(tensor.shape), tensor.dtype) == ((6, 256), torch.bfloat16)
    assert tuple(tensor.qdata.shape) == (6, 128)
    assert tuple(tensor.scale.shape) == tuple(tensor.zero_point.shape) == (2, 6)
    assert (tensor.block_size, tensor.activation_dtype) == ([1, 128], torch.float8_e4m3fn)


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(errors.QuantizationError, match=r"A row of 100 weights .* groups of 128"):
        quantize_int4(torch.randn(4, 100))
    assert SCHEMES["int4wo"].config_for([256, 512]).group_size == 128
    assert SCHEMES["int4wo"].config_for([576, 1536]).group_size == 64
    assert SCHEMES["int4wo"].config_for([96]).group_size == 32
    with pytest.raises(errors.QuantizationError, match="A row of 100 weights"):
        SCHEMES["int4wo"].config_for([128, 100])


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme_quantises_on_any_machine(name: str) -> None:
    weight = torch.randn(64, 256, dtype=torch.bfloat16)
    weight[3] = 0.0
    tensor = SCHEMES[name].quantize(weight)
    assert type(tensor).__name__ in ("Int8Tensor", "Float8Tensor", "Int4Tensor")
    if name.startswith("int4"):
        back = unpack_int4(tensor.qdata) * tensor.scale.float().t().repeat_interleave(128, dim=1)
    else:
        back = tensor.qdata.float() * tensor.scale.reshape(-1, 1).float()
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    steps = {"int8": 254, "int8wo": 254, "fp8": 15.9, "int4wo": 14.5, "int4fp8": 14.5}[name]
    assert ((back - weight.float()).abs() <= 1.01 * largest / steps).all()
    outline = SCHEMES[name].quantize(torch.empty(64, 256, dtype=torch.bfloat16, device="meta"))
    assert outline.qdata.shape == tensor.qdata.shape


def test_the_settings_of_inductor_are_left_alone() -> None:
    for scheme in SCHEMES.values():
        assert getattr(scheme.config(), "set_inductor_config", False) is False
    assert quantize_weight(torch.randn(8, 64), SCHEMES["int8"].config()).shape == (8, 64)
