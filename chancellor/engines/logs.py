"""Engine logs go to a file, one for each process that uses Chancellor, and never to the user's terminal."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import psutil

from chancellor.settings import settings

__all__ = [
    "LOG_VARIABLE",
    "file_handler",
    "in_file",
    "log_file",
    "refusal_in",
    "shortage_in",
    "vllm_logging_config",
    "write_to",
]

LOG_VARIABLE: Final = "CHANCELLOR_ENGINE_LOG"
"""Environment variable that tells an engine's processes where to write."""
_KEPT = 20
_given: Path | None = None
_REFUSAL = re.compile(r"\bUnusableWeightError: (.+)")
_SHORTAGE = re.compile(
    r"OutOfMemoryError: .+|CUDA out of memory.+|No available memory for the cache blocks"
    r"|To serve at least one request .+|(?:Free|Available) memory on (?:device|node) .+|can't allocate memory.+"
    r"|(?i:cannot allocate memory)|std::bad_alloc|\bMemoryError\b.*"
    r"|FATAL ERROR: OUT OF MEMORY.*|libgomp: Out of memory.*|\bout_of_memory\b"  # ZeroMQ, OpenMP, oneDNN
)
_KILLED = re.compile(r"exit code -9\b.*|\{'[\w-]+': -9\}")


def log_file() -> Path:
    """Return this process's log file, which exists, also where somebody has cleaned up meanwhile."""
    path = _given or _path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return path


def write_to(path: Path) -> None:
    """Take this file for this process's: an engine's own process writes where its parent does."""
    global _given
    _given = path


@cache
def _path() -> Path:
    folder = settings().log_dir
    _tidy(folder)
    return folder / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _tidy(folder: Path) -> None:
    """Remove the oldest logs of processes that have ended."""
    ended = [log for log in sorted(folder.glob("engine-*.log")) if not _in_use(log)]
    for log in ended[:-_KEPT]:
        log.unlink(missing_ok=True)


def _in_use(log: Path) -> bool:
    pid = log.stem.rpartition("-")[2]
    return pid.isdecimal() and psutil.pid_exists(int(pid))


@contextmanager
def in_file(*names: str) -> Iterator[None]:
    """Write what loggers of these names say meanwhile into the file and nowhere else.

    So do those below them that have no handlers of their own. What is configured anew meanwhile stays as it is then.
    """
    handler = logging.FileHandler(log_file())
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(name)s] %(message)s", "%m-%d %H:%M:%S"))
    loggers = [logging.getLogger(name) for name in names]
    before = [(one, list(one.handlers), one.propagate) for one in loggers]
    try:
        for one, handlers, _ in before:
            for theirs in handlers:
                one.removeHandler(theirs)
            one.addHandler(handler)
            one.propagate = False
        yield
    finally:
        for one, handlers, propagate in before:
            if handler in one.handlers:
                one.removeHandler(handler)
                for theirs in handlers:
                    one.addHandler(theirs)  # unless it is there
                one.propagate = one.propagate or propagate
        handler.close()


def refusal_in(log: Path, since: int) -> str | None:
    """Return why weights were refused, as the log says after its first `since` bytes, or None if they were not."""
    found = _REFUSAL.findall(_since(log, since))
    return found[-1] if found else None


def shortage_in(log: Path, since: int, error: object = "", *, killed: bool = True) -> str | None:
    """Return what says, in the error or after the log's first `since` bytes, that memory was too little, or None.

    Args:
        log: to read.
        since: where its part begins that counts.
        error: what was raised.
        killed: whether a process that was killed (-9) counts: where nobody else did it, it was the kernel.
    """
    text = f"{_since(log, since)}\n{error}"
    found = _SHORTAGE.findall(text) or (_KILLED.findall(text) if killed else [])
    return found[-1] if found else None


def _since(log: Path, since: int) -> str:
    with log.open("rb") as file:
        file.seek(since)
        return file.read().decode("utf-8", errors="replace")


def vllm_logging_config() -> str:
    """Return the path of the logging configuration that sends vLLM's records through `file_handler`."""
    return str(files("chancellor.engines").joinpath("vllm_logging.json"))


def file_handler() -> logging.Handler:
    """Make the handler that vllm_logging.json names, in this process and in the engine's own."""
    return logging.FileHandler(os.environ.get(LOG_VARIABLE) or os.devnull, delay=True)
