"""Whether a checkpoint's files still have the checksums that they were made, installed or downloaded with."""

import base64
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chancellor.checkpoints import find
from chancellor.checkpoints.shapes import SHAPE
from chancellor.doctor.entries import Entry
from chancellor.doctor.finding import Finding, error, ok
from chancellor.quantization.manifest import Manifest

__all__ = ["checksums"]

_SHA256_DIGITS: Final = 64
_SHA1_DIGITS: Final = 40


def checksums(entry: Entry) -> Iterator[Finding]:
    """Read all that an entry's engine would read: the source, and what Chancellor has made of it.

    Raises:
        BrokenCheckpointError: a file that Chancellor has made differs.
    """
    spec = entry.spec
    if spec.source.startswith(SHAPE) or spec.engine.kind == "openai":
        return
    made = None if entry.folder is None else Manifest.read(entry.folder)
    if made is not None and entry.folder is not None:
        made.check(entry.folder, checksums=True)
        yield ok("checksums", f"{len(made.files)} files of {entry.folder.name} are as Chancellor wrote them")
    source = find(spec.source, spec.revision)
    if source is None or (made is not None and source.path == entry.folder):
        return
    if source.identity.startswith("package:"):
        yield from _of_package(spec.source.removeprefix("package:"), source.path)
        return
    files = sorted(source.path.iterdir()) if source.path.is_dir() else [source.path]
    # The hub's cache has each file under its checksum, and links to it.
    blobs = {file: file.resolve().name for file in files if file.is_symlink()}
    known = {file: name for file, name in blobs.items() if len(name) in (_SHA256_DIGITS, _SHA1_DIGITS)}
    if not source.identity.startswith("hub:") or not known:
        yield ok("checksums", f"nothing says which checksums the files of {spec.source} should have")
        return
    wrong = [file for file, name in known.items() if _blob(file, sha256=len(name) == _SHA256_DIGITS) != name]
    for file in wrong:
        again = f"hf download {spec.source} --revision {source.revision}"
        yield error("checksums", f"{file} is not what was downloaded", f"rm {file.resolve()} && {again}")
    if not wrong:
        yield ok("checksums", f"{len(known)} files of {spec.source} are as they were downloaded")


def _of_package(name: str, path: Path) -> Iterator[Finding]:
    distribution = importlib.metadata.distribution(name)
    checked = 0
    for file in distribution.files or ():
        place = Path(str(distribution.locate_file(file)))
        if file.hash is None or not (place == path or place.is_relative_to(path)):
            continue
        with place.open("rb") as stream:
            digest = hashlib.file_digest(stream, file.hash.mode).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            again = f"pip install --no-deps --force-reinstall {name}=={distribution.version}"
            yield error("checksums", f"{place} is not what was installed", again)
            return
        checked += 1
    yield ok("checksums", f"{checked} file{'' if checked == 1 else 's'} of the package {name} as installed")


def _blob(file: Path, *, sha256: bool) -> str:
    """Return the name under which the hub's cache would have a file: SHA-256 of large ones, git's SHA-1 of others."""
    with file.open("rb") as stream:
        if sha256:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        content = stream.read()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
