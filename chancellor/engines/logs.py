"""Engine logs go to a file, one for each process that uses Chancellor, and never to the user's terminal."""

import logging
import os
import re
import time
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from chancellor.settings import settings

__all__ = ["LOG_VARIABLE", "file_handler", "log_file", "refusal_in", "vllm_logging_config"]

LOG_VARIABLE: Final = "CHANCELLOR_ENGINE_LOG"
"""Environment variable that tells an engine's processes where to write."""
_KEPT = 20
_REFUSAL = re.compile(r"\bUnusableWeightError: (.+)")


@cache
def log_file() -> Path:
    """Return this process's log file; the oldest logs of earlier processes are removed."""
    folder = settings().log_dir
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("engine-*.log"))[:-_KEPT]:
        old.unlink(missing_ok=True)
    path = folder / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path.touch()
    return path


def refusal_in(log: Path, since: int) -> str | None:
    """Return why weights were refused, as the log says after its first `since` bytes, or None if they were not."""
    with log.open("rb") as file:
        file.seek(since)
        found = _REFUSAL.findall(file.read().decode("utf-8", errors="replace"))
    return found[-1] if found else None


def vllm_logging_config() -> str:
    """Return the path of the logging configuration that sends vLLM's records through `file_handler`."""
    return str(files("chancellor.engines").joinpath("vllm_logging.json"))


def file_handler() -> logging.Handler:
    """Make the handler that vllm_logging.json names, in this process and in the engine's own."""
    return logging.FileHandler(os.environ.get(LOG_VARIABLE) or os.devnull, delay=True)
