"""What a written checkpoint is made of: kept beside the weights as chancellor.json."""

import hashlib
import importlib.metadata
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from chancellor.errors import BrokenCheckpointError

__all__ = ["FORMAT", "Manifest"]

FORMAT: Final = 1
_NAME: Final = "chancellor.json"
_VERSIONS_OF: Final = ("chancellor", "torch", "torchao", "transformers", "safetensors")


class FileRecord(BaseModel):
    """One file of the checkpoint."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Provenance of a checkpoint that Chancellor wrote."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    source: str
    """Identity of the original: package and version, hub id and commit, or folder and fingerprint."""
    revision: str | None
    scheme: str | None
    """Name of the scheme; None where the weights were only converted."""
    dtype: str
    """Compute type of the activations, e.g. "bfloat16"."""
    parameters: int
    quantized_layers: int
    created_at: str
    versions: dict[str, str]
    files: dict[str, FileRecord]

    @classmethod
    def describe(
        cls,
        folder: Path,
        *,
        source: str,
        revision: str | None,
        scheme: str | None,
        dtype: str,
        parameters: int,
        quantized_layers: int,
    ) -> Self:
        """Record every file of `folder` with its size and SHA-256."""
        versions = {"python": platform.python_version()}
        for package in _VERSIONS_OF:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return cls(
            source=source,
            revision=revision,
            scheme=scheme,
            dtype=dtype,
            parameters=parameters,
            quantized_layers=quantized_layers,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions,
            files={
                file.name: FileRecord(bytes=file.stat().st_size, sha256=_sha256(file))
                for file in sorted(folder.iterdir())
                if file.is_file() and file.name != _NAME
            },
        )

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        (folder / _NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the manifest of `folder`, or None where Chancellor did not write it.

        Raises:
            BrokenCheckpointError: it is there and malformed.
        """
        path = folder / _NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise BrokenCheckpointError(f"{path} is malformed.") from error

    def check(self, folder: Path, *, checksums: bool = False) -> None:
        """Compare the files with what was recorded: their sizes, and on request their checksums.

        Raises:
            BrokenCheckpointError: a file is missing or differs.
        """
        for name, record in self.files.items():
            file = folder / name
            if not file.is_file():
                raise BrokenCheckpointError(f"{file} is missing.", hint=_again(folder))
            if (size := file.stat().st_size) != record.bytes:
                raise BrokenCheckpointError(
                    f"{file} should have {record.bytes:,} bytes and has {size:,}.", hint=_again(folder)
                )
            if checksums and _sha256(file) != record.sha256:
                raise BrokenCheckpointError(
                    f"{file} does not have the checksum it was written with.", hint=_again(folder)
                )


def _again(folder: Path) -> str:
    return f"Delete {folder} and let it be made again."


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
