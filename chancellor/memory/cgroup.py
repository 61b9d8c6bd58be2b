"""The memory limits of the control groups that this process is in: in a container, the machine's own say too much."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Limit", "limits", "oom_kills"]

_UNLIMITED: Final = 2**60  # version 1 writes the largest multiple of a page for "none"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")  # mountinfo's way with spaces


class Limit(NamedTuple):
    """One group with a limit, in bytes."""

    total: int
    used: int
    """What cannot be given back: file cache that the kernel would drop is not part of it."""


class _Version(NamedTuple):
    limit: str
    usage: str
    cache: tuple[str, ...]
    """Fields of memory.stat that are file cache."""
    events: str
    """Where `oom_kill` counts."""


_V1: Final = _Version(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
    "memory.oom_control",
)
_V2: Final = _Version("memory.max", "memory.current", ("active_file", "inactive_file"), "memory.events")


def limits(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> list[Limit]:
    """Return the limits of this process's groups and of all groups above them; none where nothing is limited.

    Args:
        proc: where `cgroup` and `mountinfo` are read.
        root: what the mount points in it are below.
    """
    found = []
    for version, folder, top in _groups(proc, root):
        while True:
            if (limit := _limit(folder, version)) is not None:
                found.append(limit)
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    return found


def oom_kills(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> int:
    """Return how many processes of this one's groups the kernel has killed for want of memory so far.

    Where no group tells, as at the top, they are those of the whole machine.
    """
    files = [folder / version.events for version, folder, _ in _groups(proc, root)]
    counts = [count for path in files if (count := _oom_kill(path)) is not None]
    return max(counts) if counts else _oom_kill(root / "proc/vmstat") or 0


def _oom_kill(path: Path) -> int | None:
    try:
        rows = (line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines())
        return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def _groups(proc: Path, root: Path) -> Iterator[tuple[_Version, Path, Path]]:
    """Yield the folder of each memory group of this process, and the one that its file system is mounted on."""
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = _V2 if number == "0" and not controllers else _V1 if "memory" in controllers.split(",") else None
        if version is None:
            continue
        for mount in mounts:
            left, _, right = mount.partition(" - ")
            fields, (kind, _, options) = left.split(), [*right.split(), "", "", ""][:3]
            fits = kind == "cgroup2" if version is _V2 else kind == "cgroup" and "memory" in options.split(",")
            if not fits or len(fields) < 5:
                continue
            within, top = _plain(fields[3]), root / _plain(fields[4]).lstrip("/")
            # Without a namespace of its own, a container sees its group by the host's path, mounted at the top.
            below = path.removeprefix(within) if within != "/" and f"{path}/".startswith(f"{within}/") else path
            folder = top / below.lstrip("/")
            yield version, folder if ".." not in folder.parts and folder.is_dir() else top, top
            break


def _limit(folder: Path, version: _Version) -> Limit | None:
    try:
        total = int((folder / version.limit).read_text(encoding="ascii"))  # "max" is no number: unlimited
        used = int((folder / version.usage).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if total >= _UNLIMITED else Limit(total, max(0, used - _cache(folder / "memory.stat", version.cache)))


def _cache(path: Path, fields: tuple[str, ...]) -> int:
    try:
        rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
        return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in fields)
    except (OSError, ValueError):
        return 0


def _plain(path: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)
