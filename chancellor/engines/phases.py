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


_FACTS: Final = {
    "weights_gib": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv_cache_tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
}


@contextmanager
def following(log: Path, model: str) -> Iterator[dict[str, float]]:
    """Report the phases that appear in the log while the block runs; the dict fills with the figures found in it."""
    done = threading.Event()
    facts: dict[str, float] = {}
    thread = threading.Thread(target=_follow, args=(log, model, facts, done), name="chancellor-log", daemon=True)
    thread.start()
    try:
        yield facts
    finally:
        done.set()
        thread.join()


def _follow(log: Path, model: str, facts: dict[str, float], done: threading.Event) -> None:
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, 2)
        last = False
        while not last:
            last = done.wait(_POLL_S)  # once more after the end: the last lines hold the figures
            for line in file:
                for name, figure in _FACTS.items():
                    if found := figure.search(line):
                        facts[name] = float(found[1].replace(",", ""))
                for pattern, message in _PHASES:
                    if pattern.search(line):
                        progress.report("start", model, message)
