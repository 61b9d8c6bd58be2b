"""Whether a checkpoint's files still have the checksums that they were made, installed or downloaded with."""

import base64
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Final

from chancellor.checkpoints import Checkpoint, find
from chancellor.checkpoints.shapes import SHAPE
from chancellor.doctor.entries import Entry
from chancellor.doctor.finding import Finding, error, ok
from chancellor.errors import BrokenCheckpointError
from chancellor.quantization.manifest import Manifest

__all__ = ["checksums"]

_NAMES: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""What the hub's cache calls a file: git's SHA-1 of small ones, SHA-256 of large ones."""


def checksums(entry: Entry) -> Iterator[Finding]:
    """Read all that an entry's engine would read: the source, and what Chancellor has made of it."""
    spec = entry.spec
    if spec.source.startswith(SHAPE) or spec.engine.kind == "openai":
        return
    source = find(spec.source, spec.revision)
    made = None if entry.folder is None else Manifest.read(entry.folder)
    if made is not None and entry.folder is not None:
        yield _made(made, entry.folder, again=source is not None and source.path != entry.folder)
        if source is not None and source.path == entry.folder:
            return
    if source is None:
        yield ok("checksums", f"nothing of {spec.source} is on this machine")
    elif source.identity.startswith("package:"):
        yield from _of_package(spec.source.removeprefix("package:"), source.path)
    elif source.identity.startswith("hub:"):
        yield from _of_hub(spec.source, source)
    else:
        yield ok("checksums", f"nothing says which checksums the files of {spec.source} should have")


def _made(made: Manifest, folder: Path, *, again: bool) -> Finding:
    try:
        made.check(folder, checksums=True)
    except BrokenCheckpointError as problem:
        scheme = f" --scheme {made.scheme}" if made.scheme else ""
        anew = f"mv {quote(str(folder))} {quote(f'{folder}.damaged')} && chancellor quantize {quote(made.source)}"
        fix = f"rm -r {quote(str(folder))}" if again else f"{anew} {quote(str(folder))}{scheme}"
        return error("checksums", problem.message, fix)
    return ok("checksums", f"{len(made.files)} files of {folder.name} are as Chancellor wrote them")


def _of_hub(repo: str, source: Checkpoint) -> Iterator[Finding]:
    folder = source.path if source.path.is_dir() else source.path.parent
    files = [file for file in sorted(folder.rglob("*")) if file.is_symlink()]
    # Each links to a file that is named after its checksum, or, where repositories share files, links to one itself.
    blobs = {file: file.parent / file.readlink() for file in files}
    known = {file: blob for file, blob in blobs.items() if _NAMES.fullmatch(blob.name)}
    wrong = [file for file, blob in known.items() if not file.is_file() or _named(file, like=blob.name) != blob.name]
    for file in wrong:
        places = dict.fromkeys([str(file.resolve()), os.path.normpath(known[file])])
        fetch = f"hf download {repo} {quote(str(file.relative_to(folder)))} --revision {source.revision}"
        message = f"{file} is not what was downloaded" if file.is_file() else f"{file} is missing"
        yield error("checksums", message, f"rm -f {' '.join(map(quote, places))} && {fetch}")
    if not known:
        yield ok("checksums", f"nothing says which checksums the files of {repo} should have")
    elif not wrong:
        yield ok("checksums", f"{len(known)} files of {repo} are as they were downloaded")


def _of_package(name: str, path: Path) -> Iterator[Finding]:
    distribution = importlib.metadata.distribution(name)
    again = f"pip install --no-deps --force-reinstall {name}=={distribution.version}"
    checked = 0
    for file in distribution.files or ():
        place = Path(str(distribution.locate_file(file)))
        if file.hash is None or not (place == path or place.is_relative_to(path)):
            continue
        if not place.is_file():
            yield error("checksums", f"{place} is missing", again)
            return
        with place.open("rb") as stream:
            digest = hashlib.file_digest(stream, file.hash.mode).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            yield error("checksums", f"{place} is not what was installed", again)
            return
        checked += 1
    yield ok("checksums", f"{checked} file{'' if checked == 1 else 's'} of the package {name} as installed")


def _named(file: Path, *, like: str) -> str:
    """Return the name under which the hub's cache would have a file."""
    with file.open("rb") as stream:
        if len(like) == 64:  # the digits of SHA-256
            return hashlib.file_digest(stream, "sha256").hexdigest()
        content = stream.read()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
