"""What the vLLM engine takes of vLLM: its class, a stat logger, and its view of the environment."""

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final

from chancellor.engines.base import EngineStats
from chancellor.engines.logs import in_file
from chancellor.errors import EngineStartError, MissingDependencyError

__all__ = [
    "TALKATIVE",
    "forget_environment",
    "import_async_llm",
    "keep_imports",
    "remember_environment",
    "stat_logger",
]

TALKATIVE: Final = ("torch", "torchao")
"""Loggers that tell, while vLLM is imported and started, of all kernels that this machine lacks."""


@cache
def import_async_llm() -> Any:
    """Return AsyncLLM, less its finaliser."""
    with suppress(Exception):  # vLLM's import tells why
        import torch  # noqa: F401 - sets up its loggers anew
    try:
        with in_file(*TALKATIVE):
            import vllm  # noqa: F401
            from vllm.v1.engine.async_llm import AsyncLLM
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "vllm":
            raise MissingDependencyError.of("vllm") from error
        raise EngineStartError(
            f"vLLM is installed, but cannot be imported: {error}",
            hint="Its version and torch's have to match: the folder requirements/ has sets that do.",
        ) from error

    class QuietAsyncLLM(AsyncLLM):  # type: ignore[misc]
        def __del__(self) -> None:
            # The pool shuts engines down. The original does it once more, and complains when the interpreter ends.
            pass

    return QuietAsyncLLM


def forget_environment() -> None:
    """Have vLLM read its environment variables anew: the next engine may start with others."""
    _environment_cache("disable_envs_cache")


def remember_environment() -> None:
    """Have vLLM read each of its environment variables once only: it looks one up for every token it passes on."""
    with suppress(Exception):  # only speed is lost without it
        _environment_cache("enable_envs_cache")


def _environment_cache(name: str) -> None:
    envs = sys.modules.get("vllm.envs")  # there is none if vLLM cannot be imported
    if (change := getattr(envs, name, None)) is not None:
        change()


@cache
def keep_imports() -> None:
    """Keep what has been imported by now out of the garbage collector's rounds, as vLLM's own server does.

    The longest of them would hold up every stream.
    """
    gc.collect()
    gc.freeze()


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
