import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chancellor.memory import Estimate, estimate
from chancellor.memory.layout import Layout
from chancellor.memory.tensors import of_layout
from chancellor.memory.weights import weight_bytes
from chancellor.quantization.schemes import SCHEMES, Scheme
from tests.entries import GIB, LLAMA, MIB, shape, spec


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from chancellor import Catalog; from chancellor.memory import Ledger, devices\n"
        "devices(); [Ledger().expected(spec) for spec in Catalog.demo().values()]\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'torchao') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_a_server_needs_nothing() -> None:
    need = estimate(spec("gpt", kind="openai", base_url="http://127.0.0.1:1/v1"))
    assert (need.devices, need.total, need.least) == ((), 0, 0)


@pytest.mark.parametrize(
    ("scheme", "gib"),
    [(None, 14.96), ("int8", 8.46), ("int8wo", 8.46), ("fp8", 8.46), ("int4wo", 5.31), ("int4fp8", 5.31)],
)
def test_weights_on_a_gpu_are_those_that_vllm_reports(on_gpus: Any, scheme: str | None, gib: float) -> None:
    on_gpus(1)
    assert estimate(spec(LLAMA, scheme, dtype="bfloat16")).weights / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("scheme", "options", "kv_gib", "used_mib"),
    [  # what NVML said of a whole H100 with one engine on it: bench/results
        (None, {}, 24, 42515),
        ("int8", {}, 24, 36547),
        ("fp8", {}, 24, 37029),
        ("int4wo", {}, 24, 33421),
        ("int8wo", {}, 24, 36679),
    ],
)
def test_engines_on_an_h100(
    on_gpus: Any, scheme: str | None, options: dict[str, Any], kv_gib: int, used_mib: int
) -> None:
    on_gpus(1)
    need = estimate(spec(LLAMA, scheme, dtype="bfloat16", kv_cache_gib=kv_gib, max_model_len=2048, **options))
    assert 0.95 < need.total / MIB / used_mib < 1.05


def test_tied_and_quantised_output_layers(on_gpus: Any) -> None:
    on_gpus(1)
    tied, table = "shape:llama-3.2-1b", 128256 * 2048
    plain = estimate(spec(tied, "int8", dtype="bfloat16")).weights
    quantised = estimate(spec(tied, "int8", dtype="bfloat16", quantize_lm_head=True)).weights
    assert quantised - plain == table + 128256 * 4  # the embedding keeps its own
    untied = [estimate(spec(LLAMA, "int8", dtype="bfloat16", quantize_lm_head=head)).weights for head in (False, True)]
    assert (untied[0] - untied[1]) / GIB == pytest.approx(0.49, abs=0.01)


def test_tensor_parallel_splits(on_gpus: Any) -> None:
    on_gpus(4)
    need = {size: estimate(spec(LLAMA, tensor_parallel_size=size)) for size in (1, 2, 4)}
    assert estimate(spec(LLAMA)) == need[4]
    assert need[4].devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    for part in ("weights", "kv_cache", "kv_cache_least"):
        assert getattr(need[1], part) == pytest.approx(4 * getattr(need[4], part), abs=4)
    assert need[2].activations < need[1].activations
    assert need[2].overhead > need[1].overhead  # NCCL


def test_more_ranks_than_heads_each_hold_a_head(on_gpus: Any) -> None:
    on_gpus(1)
    one, many = (estimate(spec("shape:nano", tensor_parallel_size=size)).kv_cache_least for size in (2, 4))
    assert one == many


def test_ranks_on_a_cpu_share_it() -> None:
    one, two = (estimate(spec(tensor_parallel_size=size)) for size in (1, 2))
    assert two.devices == ("cpu",)
    assert two.weights == pytest.approx(one.weights, abs=2)
    assert two.kv_cache == 2 * one.kv_cache
    assert two.overhead > one.overhead


def test_the_kv_cache_that_was_given() -> None:
    assert estimate(spec(kv_cache_gib=0.5)).kv_cache == GIB // 2
    assert estimate(spec(kv_cache_gib=0.5, vllm={"kv_cache_memory_bytes": 7 * MIB})).kv_cache == 7 * MIB
    assert estimate(spec()).kv_cache == GIB


def test_the_kv_cache_on_a_gpu_is_a_full_batch_at_an_eighth_of_the_context(on_gpus: Any) -> None:
    on_gpus(1)
    token = 2 * 32 * 8 * 128 * 2
    assert estimate(spec(LLAMA, max_model_len=4096)).kv_cache == token * 4096 * 256 // 8
    assert estimate(spec(LLAMA, max_num_seqs=1)).kv_cache == token * (4096 + 256)
    assert estimate(spec(LLAMA, max_num_seqs=1, vllm={"kv_cache_dtype": "fp8"})).kv_cache == token * (4096 + 256) // 2


def test_a_compressed_cache_is_small() -> None:
    config = {"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert Layout.of(config).token_bytes(2, ranks=8) == 61 * 576 * 2


def test_layers_without_a_kv_cache() -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 64, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    assert Layout.of(config).token_bytes(2) == 2 * 64 * 2


def test_a_multimodal_config_has_its_sizes_inside() -> None:
    config = {"text_config": {"num_hidden_layers": 3, "hidden_size": 64}, "tie_word_embeddings": False}
    assert Layout.of(config).layers == 3


def test_a_front_end_of_its_own_takes_memory_of_a_cpu_only(on_gpus: Any) -> None:
    apart, here = (estimate(spec(frontend=where)) for where in ("process", "thread"))
    assert 500 * MIB < apart.total - here.total < 600 * MIB
    on_gpus(1)
    assert estimate(spec(frontend="process")) == estimate(spec(frontend="thread"))


def test_transformers_has_no_pool_of_blocks() -> None:
    need = estimate(spec(kind="transformers", max_num_seqs=4, max_model_len=512))
    assert need.graphs == 0
    assert need.kv_cache == need.kv_cache_least  # more than half a context
    assert estimate(spec(kind="transformers")).kv_cache > need.kv_cache


def test_graphs_are_only_on_gpus_and_only_where_they_are_wanted(on_gpus: Any) -> None:
    assert estimate(spec(enforce_eager=False)).graphs == 0
    on_gpus(1)
    assert estimate(spec()).graphs > 0
    assert estimate(spec(enforce_eager=True)).graphs == 0
    assert estimate(spec(vllm={"enforce_eager": True})).graphs == 0


SIZES = st.integers(1, 64)


@given(layers=SIZES, more=st.integers(0, 32))
def test_monotone_in_layers(layers: int, more: int) -> None:
    small, large = (estimate(shape(count)) for count in (layers, layers + more))
    assert small.total <= large.total
    assert small.least <= large.least


@given(
    context=st.integers(16, 4096), more=st.integers(0, 10_000), kind=st.sampled_from(["vllm", "transformers"]), n=SIZES
)
def test_monotone_in_context_and_sequences(context: int, more: int, kind: str, n: int) -> None:
    def need(length: int, sequences: int) -> Estimate:
        return estimate(spec(LLAMA, kind=kind, max_model_len=length, max_num_seqs=sequences))

    assert need(context, n).total <= need(context + more, n).total
    assert need(context, n).least <= need(context + more, n).least
    assert need(context, n).total <= need(context, n + more).total


@given(
    hidden=st.integers(1, 64),
    heads=st.integers(1, 16),
    vocabulary=st.integers(1, 2**18),
    scheme=st.sampled_from([None, *SCHEMES]),
    kind=st.sampled_from(["vllm", "transformers"]),
    dtype=st.sampled_from([None, "float32", "bfloat16"]),
    ranks=st.sampled_from([1, 2, 4]),
    batched=st.integers(1, 2**16),
)
def test_least_is_never_more_than_total(
    hidden: int, heads: int, vocabulary: int, scheme: Any, kind: Any, dtype: Any, ranks: int, batched: int
) -> None:
    overrides = {"hidden_size": 64 * hidden, "num_attention_heads": heads, "vocab_size": vocabulary}
    need = estimate(
        spec(
            "shape:nano",
            scheme,
            kind=kind,
            dtype=dtype,
            tensor_parallel_size=ranks,
            vllm={"hf_overrides": overrides, "max_num_batched_tokens": batched},
        )
    )
    assert 0 < need.least <= need.total
    assert min(need.weights, need.kv_cache, need.kv_cache_least, need.activations, need.overhead) > 0
    assert need.total - need.kv_cache == need.least - need.kv_cache_least == need.fixed


@given(values=st.integers(0, 10**9), columns=st.sampled_from([0, 64, 96, 128, 4096]))
def test_no_scheme_makes_a_model_larger(values: int, columns: int) -> None:
    tensors = of_layout(Layout.of({"num_hidden_layers": 1, "hidden_size": columns, "vocab_size": 8}), values)
    plain = weight_bytes(tensors, None, 2, tied=True)
    for name in SCHEMES:
        assert weight_bytes(tensors, Scheme.of(name), 2, tied=True) <= plain
