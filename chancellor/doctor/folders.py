"""The folders that Chancellor writes to, and how many files it may open."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chancellor.doctor.finding import Finding, error, gib, ok, warning
from chancellor.settings import Settings

__all__ = ["folders", "open_files"]

_GIB: Final = 2**30
_LEAST_FILES: Final = 4096


def folders(settings: Settings) -> Iterator[Finding]:
    """Look at whether the folders can be written, and at the room on their disks."""
    yield _folder("cache-folder", settings.cache_dir, "CHANCELLOR_CACHE_DIR", 5 * _GIB, "quantised checkpoints")
    yield _folder("log-folder", settings.log_dir, "CHANCELLOR_LOG_DIR", _GIB // 8, "logs of engines")
    home = (
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    yield _folder("hub-folder", hub, "HF_HUB_CACHE", 5 * _GIB, "downloads of the hub")


def open_files() -> Iterator[Finding]:
    """Look at how many files and connections this process may have open; vLLM raises the soft limit itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        message = f"At most {hard} files and connections can be open at once: many requests at once will fail"
        yield warning("open-files", message, "ulimit -n 65535 (as root; in a container: --ulimit nofile=65535)")
    else:
        yield ok("open-files", f"{soft} files and connections can be open at once")


def _folder(check: str, folder: Path, variable: str, least: int, what: str) -> Finding:
    elsewhere = f"export {variable}=FOLDER, one that can be written and has room"
    existing = folder.expanduser()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Tried, not asked: root may do everything, but for read-only file systems and quotas.
        with tempfile.TemporaryDirectory(prefix=".chancellor-doctor-", dir=existing) as made:
            Path(made, "test").write_bytes(b"\0" * 4096)
        left = shutil.disk_usage(existing).free
    except OSError as problem:
        return error(check, f"{folder} ({what}) cannot be written: {problem.strerror or problem}", elsewhere)
    said = f"{folder} ({what}) can be written, and has {gib(left)} left"
    return ok(check, said) if left >= least else warning(check, said, f"Make room there, or: {elsewhere}")
