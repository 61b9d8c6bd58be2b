"""What a starting engine is doing, read from its log as it grows."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chancellor import progress

__all__ = ["following"]

_POLL_S: Final = 0.3
_PHASES: Final = (
    (re.compile(r"Initializing a V1 LLM engine"), "vLLM: setting up the worker"),
    (re.compile(r"Starting to load model"), "vLLM: loading the weights"),
    (re.compile(r"Loading weights took"), "vLLM: reserving the KV cache"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph|torch\.compile takes"), "vLLM: compiling"),
    (re.compile(r"KV cache size"), "vLLM: warming up"),
    (re.compile(r"Capturing CUDA graphs"), "vLLM: capturing CUDA graphs"),
)


@contextmanager
def following(log: Path, model: str) -> Iterator[None]:
    """Report the phases that appear in the log while the block runs."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(log, model, done), name="chancellor-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(log: Path, model: str, done: threading.Event) -> None:
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, 2)
        while not done.wait(_POLL_S):
            for line in file:
                for pattern, message in _PHASES:
                    if pattern.search(line):
                        progress.report("start", model, message)
