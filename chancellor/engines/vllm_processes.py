"""The processes of one vLLM engine, from their start to their end."""

import asyncio
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

import psutil

from chancellor.engines.spawn import PROCESS_NAMES, environment

__all__ = ["SHUTDOWN_S", "Processes"]

_SEGMENT: Final = "/dev/shm/psm_"  # noqa: S108 - where multiprocessing.shared_memory keeps them on Linux
_LONGEST: Final = 50
"""Bytes of the temporary folder's path: ours takes 20 more, a socket's name 37, and its address may have 107."""
SHUTDOWN_S: Final = 10.0
"""How long an engine may take to end before it is killed."""


class Processes:
    """What vLLM starts for an engine: processes, those below them, the memory that they share, and their sockets."""

    def __init__(self) -> None:
        self._before: set[Any] = set()
        self._starting = False
        self._started: set[Any] = set()
        self._all: list[psutil.Process] = []
        self._segments: set[Path] = set()
        self._sentinels: list[int] = []
        self._sockets: Path | None = None

    @property
    def all(self) -> list[psutil.Process]:
        """Those of the engine that runs, or starts."""
        return self._all or (_with_children(_children() - self._before) if self._starting else [])

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Take what is started within the block for the engine's; kill it on an error. Hold `spawn.starting`."""
        self._sockets = folder = _folder()
        self._before, self._starting = _children(), True
        try:
            with environment({} if folder is None else {"VLLM_RPC_BASE_PATH": str(folder)}):
                yield
            self._started = _children() - self._before
            self._all = _with_children(self._started)
            self._segments = _shared_memory(self._all)
        except Exception:
            _end(_with_children(_children() - self._before), timeout_s=0)
            self._remove_sockets()
            raise
        finally:
            self._starting = False

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` on this loop when one is gone. vLLM notices that itself, unless the process was asked to end."""
        loop = asyncio.get_running_loop()
        started, self._started = self._started, set()
        for process in started:

            def ended(sentinel: int = process.sentinel) -> None:
                loop.remove_reader(sentinel)
                self._sentinels.remove(sentinel)  # its number may be another engine's by the time this one is closed
                gone()

            loop.add_reader(process.sentinel, ended)
            self._sentinels.append(process.sentinel)

    def unwatch(self) -> None:
        """Undo `watch`."""
        for sentinel in self._sentinels:
            asyncio.get_running_loop().remove_reader(sentinel)
        self._sentinels.clear()

    def kill(self) -> None:
        """End them without asking."""
        for process in self.all:
            with suppress(psutil.Error):
                process.kill()

    def end(self, patience_s: float = SHUTDOWN_S) -> None:
        """Kill what a shutdown has left after some seconds, and remove the memory that it leaves behind."""
        _end(self._all, patience_s)
        _remove(self._segments)
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """Remove what vLLM leaves behind of every engine, also of one that was shut down."""
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)


def _folder() -> Path | None:
    """Make a folder for an engine's sockets that nobody else can look into.

    None where the user has chosen one, its path would be too long, or it cannot be made: vLLM's own way is left then.
    """
    try:
        if "VLLM_RPC_BASE_PATH" in os.environ or len(os.fsencode(tempfile.gettempdir())) > _LONGEST:
            return None
        return Path(tempfile.mkdtemp(prefix="chancellor-"))
    except OSError:
        return None


def _children() -> set[Any]:
    """Return the engine processes that this process has started and that live."""
    children = multiprocessing.active_children()
    return {process for process in children if process.name.startswith(PROCESS_NAMES)}


def _with_children(started: set[Any]) -> list[psutil.Process]:
    """Return the processes and all below them, as far as they live."""
    processes = []
    for child in started:
        try:
            process = psutil.Process(child.pid)
            processes += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return processes


def _shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """Return the segments of shared memory that the processes have mapped: who is killed does not remove its own."""
    found: set[Path] = set()
    for process in processes:
        with suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
            found |= {Path(line.split()[-1]) for line in maps.splitlines() if _SEGMENT in line}
    return {path for path in found if path.exists()}


def _remove(segments: set[Path]) -> None:
    """Remove those that are still there, and have Python forget them: else it complains when the interpreter ends."""
    for path in segments:
        with suppress(OSError):
            path.unlink()
            resource_tracker.unregister(f"/{path.name}", "shared_memory")


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Kill what a shutdown has left."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=SHUTDOWN_S)
