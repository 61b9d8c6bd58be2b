"""How an engine's processes are started: spawned, with our own main module and environment.

Forking a process that has threads (the host's, the user's) can deadlock, so they are spawned. A spawned process runs
the parent's main script again, which starts a second program where that script has no `if __name__ == "__main__"`.
An engine needs nothing of that script: multiprocessing is told, for engine processes only, to run engine_main instead.
"""

import multiprocessing.spawn
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

__all__ = ["OWN_PROCESS", "PROCESS_NAMES", "engine_spawning", "environment", "starting"]

OWN_PROCESS: Final = "ChancellorEngine"
PROCESS_NAMES: Final = ("EngineCore", "VllmWorker", OWN_PROCESS)
"""How vLLM calls its processes, and how ours are called."""

starting: Final = threading.Lock()
"""Held while an engine starts: what is changed for it holds for the whole process."""

_added: Final[set[str]] = set()
"""Environment variables that are set for a start that is under way."""
_MAIN: Final = str(Path(__file__).with_name("engine_main.py"))


@contextmanager
def engine_spawning() -> Iterator[None]:
    """Within this block, engine processes start from engine_main. Hold `starting`."""
    original: Any = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, object]:
        data: dict[str, object] = original(name)
        if name.startswith(PROCESS_NAMES):
            data.pop("init_main_from_name", None)
            data["init_main_from_path"] = _MAIN
        return data

    multiprocessing.spawn.get_preparation_data = get_preparation_data
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = original


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set yet, for the length of the block. Hold `starting`."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    _added.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        _added.difference_update(added)


def _after_fork() -> None:
    """Undo in a forked child what a start in its parent has changed: nobody there ends that start."""
    reinitialised: Any = starting
    reinitialised._at_fork_reinit()  # noqa: SLF001 - as the standard library's own modules do
    for name in _added:
        os.environ.pop(name, None)
    _added.clear()


os.register_at_fork(after_in_child=_after_fork)
