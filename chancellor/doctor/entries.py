"""The models of the catalog: what each one's files say, before anything is loaded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chancellor.catalog import ModelSpec
from chancellor.checkpoints import find, inspect_checkpoint
from chancellor.checkpoints.inspect import read_json
from chancellor.checkpoints.shapes import SHAPE, Shape
from chancellor.doctor.finding import Finding, collect, error, ok, warning
from chancellor.errors import BrokenCheckpointError
from chancellor.quantization.prepare import prepare, prepared_folder

__all__ = ["Entry", "look"]


@dataclass
class Entry:
    """One entry, and what is known of it."""

    spec: ModelSpec
    dtype: str
    """Compute type that its engine will have."""
    findings: list[Finding] = field(default_factory=list)
    config: dict[str, Any] | None = None
    """Its config.json; None if it has none that can be read yet, as a GGUF file that was not converted."""
    folder: Path | None = None
    """What an engine would serve; None if it is not there yet."""

    @property
    def broken(self) -> bool:
        """Return whether something was found that keeps it from being served."""
        return any(found.status == "error" for found in self.findings)

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that is of the language model, with the entry's overrides."""
        config = dict(self.config or {})
        overrides = self.spec.engine.vllm.get("hf_overrides")
        config |= overrides if isinstance(overrides, dict) else {}
        text = config.get("text_config")
        return text if isinstance(text, dict) else config

    @property
    def architectures(self) -> list[str]:
        """The classes that config.json names."""
        overrides = self.spec.engine.vllm.get("hf_overrides")
        config = {**(self.config or {}), **(overrides if isinstance(overrides, dict) else {})}
        names = config.get("architectures") or []
        return [str(name) for name in names] if isinstance(names, list) else []


def look(spec: ModelSpec, dtype: str) -> Entry:
    """Look at an entry's files. Nothing is downloaded, quantised or loaded."""
    entry = Entry(spec, spec.engine.dtype or dtype)
    if spec.engine.kind != "openai":
        entry.findings += collect("source", lambda: _source(entry))
    return entry


def _source(entry: Entry) -> Iterator[Finding]:
    spec = entry.spec
    if spec.source.startswith(SHAPE):
        shape = Shape.of(spec.source)
        entry.config = shape.config
        yield ok("source", f"{spec.source}: random weights in that shape")
        return
    checkpoint = find(spec.source, spec.revision)
    if checkpoint is None:
        yield _absent(spec)
        return
    kept = prepared_folder(checkpoint, spec.scheme, entry.dtype)
    if checkpoint.path.suffix == ".gguf" and kept.is_dir():  # reading the header of the original takes seconds
        yield ok("source", f"{spec.source}: {checkpoint.path.stat().st_size / 1e6:,.0f} MB, gguf")
        yield from _served(entry, kept, spec.scheme)
        return
    try:
        info = inspect_checkpoint(
            checkpoint.path, allow_pickle=spec.allow_pickle, trust_remote_code=spec.trust_remote_code
        )
    except BrokenCheckpointError as problem:
        if not checkpoint.identity.startswith("hub:"):
            raise
        message = f"{problem.message} It may be a download that was interrupted, which goes on when the model is used."
        yield warning("source", message, _download(spec))
        return
    millions = f"{info.parameters / 1e6:,.{int(info.parameters < 1e7)}f} M parameters"
    yield ok("source", f"{spec.source}: {millions}, {info.bytes / 1e6:,.0f} MB, {info.format}")
    if info.format != "gguf":
        entry.config = read_json(checkpoint.path / "config.json")
    if info.quant_method is not None:
        yield from _served(entry, checkpoint.path, spec.scheme)
    elif spec.scheme is None and info.format != "gguf":
        yield from _served(entry, checkpoint.path, None)
    elif kept.is_dir():
        yield from _served(entry, kept, spec.scheme)
    else:
        if info.format != "gguf":
            entry.folder = checkpoint.path  # whose tokenizer is copied
        done = f"quantised as {spec.scheme}" if spec.scheme else "converted to safetensors"
        yield ok("prepared", f"it is {done} on first use")


def _served(entry: Entry, folder: Path, scheme: str | None) -> Iterator[Finding]:
    """Look at the folder that an engine would serve, by the same function that makes it ready for one."""
    # By its path, so that nothing is asked of the hub.
    spec = entry.spec.model_copy(update={"source": str(folder), "revision": None, "scheme": scheme})
    prepared = prepare(spec, entry.dtype)
    entry.folder, entry.config = folder, read_json(folder / "config.json")
    if spec.engine.dtype is None and prepared.dtype is not None:
        entry.dtype = prepared.dtype
    if prepared.scheme is not None:
        yield ok("prepared", f"it is quantised as {prepared.scheme}")


def _absent(spec: ModelSpec) -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        fix = f"unset HF_HUB_OFFLINE && {_download(spec)} (or set source to a local folder)"
        return error("source", f"{spec.source} is not on this machine, and HF_HUB_OFFLINE forbids to download it", fix)
    return warning("source", f"{spec.source} is not on this machine, and is downloaded on first use", _download(spec))


def _download(spec: ModelSpec) -> str:
    return f"hf download {spec.source}{f' --revision {spec.revision}' if spec.revision else ''}"
