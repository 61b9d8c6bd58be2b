"""Metrics for Prometheus: of each request, and of what the engines are doing at the time of a scrape.

vLLM's own exporter unregisters the metrics of every other engine in the process; here each engine has its series.
"""

import logging
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from chancellor.engines import EnginePool, EngineStats, default_pool
from chancellor.errors import MissingDependencyError
from chancellor.telemetry import buckets
from chancellor.telemetry.requests import RequestRecord, subscribe, unsubscribe

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise MissingDependencyError.of("prometheus-client", "telemetry") from error

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["PrometheusExporter"]

logger = logging.getLogger(__name__)
_LABELS: Final = ("model", "engine", "quantization")
_NONE: Final = "none"
_SCRAPE_S: Final = 2.0
"""How long a scrape waits for the engines' thread, which an engine that is shut down can hold up."""


class PrometheusExporter:
    """All metrics of this process's engines, from now until `close`."""

    def __init__(self, registry: CollectorRegistry | None = None, pool: EnginePool | None = None) -> None:
        """Start counting.

        Args:
            registry: where the metrics are added; None takes prometheus_client's own, which its servers show.
            pool: whose engines to show; None takes the process's. Requests are counted in whichever pool they run.
        """
        self._registry = registry if registry is not None else REGISTRY
        self._pool = pool
        self._requests = _Requests()
        self._registry.register(self)
        self._closed = False
        subscribe(self._requests.take)

    def close(self) -> None:
        """Stop counting, and take the metrics out of the registry; once more does nothing."""
        if not self._closed:
            self._closed = True
            unsubscribe(self._requests.take)
            self._registry.unregister(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self) -> "Iterator[Metric]":
        """Yield the metrics without engines, which may take their time: the registry asks for the names."""
        yield from self._requests.collect()
        yield from _engine_metrics({})
        yield from _swap_metrics({}, {})

    def collect(self) -> "Iterator[Metric]":
        """Yield the metrics as they are now."""
        yield from self._requests.collect()
        pool = self._pool if self._pool is not None else default_pool()
        yield from _engine_metrics(_stats(pool))
        yield from _swap_metrics(pool.asleep(), pool.swaps())


class _Requests:
    """The metrics of requests, in a registry of their own: they come and go as one."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._outcomes = self._counter(
            "requests", "Requests that ended, by finish reason, class of error, or cancelled.", "outcome"
        )
        self._histograms = {
            "duration_s": self._histogram(
                "request_duration_seconds", "Seconds from taking a request to its last token.", buckets.DURATION_S
            ),
            "time_to_first_token_s": self._histogram(
                "time_to_first_token_seconds", "Seconds to the first token.", buckets.TIME_TO_FIRST_TOKEN_S
            ),
            "time_per_output_token_s": self._histogram(
                "time_per_output_token_seconds",
                "Mean seconds from token to token after the first.",
                buckets.TIME_PER_OUTPUT_TOKEN_S,
            ),
            "queue_time_s": self._histogram(
                "queue_time_seconds",
                "Seconds that requests waited in the engine for their first turn.",
                buckets.TIME_TO_FIRST_TOKEN_S,
            ),
        }
        self._counters = {
            "input_tokens": self._counter("input_tokens", "Tokens of the prompts."),
            "output_tokens": self._counter("output_tokens", "Tokens of the answers."),
            "cached_tokens": self._counter("cached_tokens", "Tokens of the prompts found in the prefix cache."),
        }

    def _histogram(self, name: str, meaning: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(f"chancellor_{name}", meaning, _LABELS, buckets=bounds, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"chancellor_{name}", meaning, (*_LABELS, *labels), registry=self._registry)

    def collect(self) -> "Iterator[Metric]":
        yield from self._registry.collect()

    def take(self, record: RequestRecord) -> None:
        labels = (record.model, record.engine or _NONE, record.quantization or _NONE)
        self._outcomes.labels(*labels, record.outcome).inc()
        if not record.answered:  # the seconds of those that failed say nothing about the model
            return
        for field, histogram in self._histograms.items():
            if (seconds := getattr(record, field)) is not None:
                histogram.labels(*labels).observe(seconds)
        for field, counter in self._counters.items():
            if (tokens := getattr(record, field)) is not None:
                counter.labels(*labels).inc(tokens)


_GAUGES: Final = {
    "running": ("requests_running", "Requests in the engine's current batch."),
    "waiting": ("requests_waiting", "Requests that wait in the engine."),
    "kv_cache_usage": ("kv_cache_usage_ratio", "Share of the KV cache in use."),
    "peak_running": ("requests_running_peak", "Largest batch since the engine's start."),
}
_COUNTERS: Final = {
    "output_tokens": ("output_tokens", "Tokens that the engine has generated, for whatever became of the request."),
    "prefix_cache_queries": ("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_cache_hits", "Those of them that were found."),
    "preemptions": ("preemptions", "Requests that were put back to make room in the KV cache."),
}


def _engine_metrics(stats: dict[str, EngineStats]) -> "Iterator[Metric]":
    for kind, fields in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for field, (name, meaning) in fields.items():
            family: Any = kind(f"chancellor_engine_{name}", meaning, labels=("model",))
            for model, engine in stats.items():
                if (value := getattr(engine, field)) is not None:
                    family.add_metric((model,), value)
            yield family


def _swap_metrics(asleep: dict[str, bool], swaps: dict[str, int]) -> "Iterator[Metric]":
    meaning = "1 while the engine sleeps, its weights in the host's memory, 0 while it does not."
    gauge = GaugeMetricFamily("chancellor_engine_asleep", meaning, labels=("model",))
    for model, sleeps in asleep.items():
        gauge.add_metric((model,), float(sleeps))
    yield gauge
    meaning = "How often an engine was put to sleep or stopped to make room, and woken."
    counter = CounterMetricFamily("chancellor_engine_swaps", meaning, labels=("kind",))
    for kind, times in swaps.items():
        counter.add_metric((kind,), times)
    yield counter


def _stats(pool: EnginePool) -> dict[str, EngineStats]:
    """Ask the pool, from a thread that can be left behind."""
    answers: queue.SimpleQueue[dict[str, EngineStats]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(pool.stats())
        except Exception:  # the pool may be closing: the metrics of requests are to come all the same
            logger.debug("The engines did not tell what they are doing", exc_info=True)
            answers.put({})

    threading.Thread(target=ask, name="chancellor-scrape", daemon=True).start()
    try:
        return answers.get(timeout=_SCRAPE_S)
    except queue.Empty:
        logger.warning("The engines did not tell within %s s what they are doing", _SCRAPE_S)
        return {}
