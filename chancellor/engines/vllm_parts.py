"""What the vLLM engine takes of vLLM and of the operating system: its class, a stat logger, and its processes."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

import psutil

from chancellor.engines.base import EngineStats
from chancellor.engines.spawn import PROCESS_NAMES
from chancellor.errors import EngineStartError, MissingDependencyError

__all__ = [
    "SHUTDOWN_S",
    "end",
    "engine_processes",
    "import_async_llm",
    "remove",
    "shared_memory",
    "stat_logger",
    "with_children",
]

_SEGMENT: Final = "/dev/shm/psm_"  # noqa: S108 - where multiprocessing.shared_memory keeps them on Linux
SHUTDOWN_S: Final = 10.0
"""How long an engine may take to end before it is killed."""


@cache
def import_async_llm() -> Any:
    """Return AsyncLLM, less its finaliser."""
    try:
        import vllm  # noqa: F401
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "vllm":
            raise MissingDependencyError.of("vllm") from error
        raise EngineStartError(
            f"vLLM is installed, but cannot be imported: {error}",
            hint="Its version and torch's have to match: the folder requirements/ has sets that do.",
        ) from error
    from vllm.v1.engine.async_llm import AsyncLLM

    class QuietAsyncLLM(AsyncLLM):  # type: ignore[misc]
        def __del__(self) -> None:
            # The pool shuts engines down. The original does it once more, and complains when the interpreter ends.
            pass

    return QuietAsyncLLM


def stat_logger(record: Callable[[EngineStats], None]) -> Any:
    """Return a stat logger class for AsyncLLM that passes on what the engine does, after each of its steps.

    vLLM's own Prometheus logger unregisters the metrics of every other engine in the process.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Recorder(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: object, engine_index: int = 0) -> None:  # noqa: ARG002 - vLLM's signature
            self.peak = self.tokens = self.queries = self.hits = self.preemptions = 0

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: object, **__: object) -> None:
            if iteration_stats is not None:
                self.tokens += iteration_stats.num_generation_tokens
                self.preemptions += iteration_stats.num_preempted_reqs
            if scheduler_stats is None:
                return
            cache = scheduler_stats.prefix_cache_stats
            if cache is not None:
                self.queries += cache.queries
                self.hits += cache.hits
            self.peak = max(self.peak, scheduler_stats.num_running_reqs)
            record(
                EngineStats(
                    running=scheduler_stats.num_running_reqs,
                    waiting=scheduler_stats.num_waiting_reqs,
                    kv_cache_usage=scheduler_stats.kv_cache_usage,
                    peak_running=self.peak,
                    output_tokens=self.tokens,
                    prefix_cache_queries=self.queries,
                    prefix_cache_hits=self.hits,
                    preemptions=self.preemptions,
                )
            )

        def log_engine_initialized(self) -> None:
            pass

    return Recorder


def engine_processes() -> set[Any]:
    """Return the engine processes that this process has started and that live."""
    children = multiprocessing.active_children()
    return {process for process in children if process.name.startswith(PROCESS_NAMES)}


def with_children(started: set[Any]) -> list[psutil.Process]:
    """Return the processes and all below them, as far as they live."""
    processes = []
    for child in started:
        try:
            process = psutil.Process(child.pid)
            processes += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return processes


def shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """Return the segments of shared memory that the processes have mapped: who is killed does not remove its own."""
    found: set[Path] = set()
    for process in processes:
        with suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
            found |= {Path(line.split()[-1]) for line in maps.splitlines() if _SEGMENT in line}
    return {path for path in found if path.exists()}


def remove(segments: set[Path]) -> None:
    """Remove those that are still there, and have Python forget them: else it complains when the interpreter ends."""
    for path in segments:
        with suppress(OSError):
            path.unlink()
            resource_tracker.unregister(f"/{path.name}", "shared_memory")


def end(processes: list[psutil.Process], timeout_s: float = SHUTDOWN_S) -> None:
    """Kill what a shutdown has left."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=SHUTDOWN_S)
