"""An engine that tells of itself, exporters in memory, and ways to look at them."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, ClassVar

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chancellor.engines import EngineStats, GenerationRequest
from chancellor.errors import GenerationError
from tests.fakes import FakeEngine, catalog

LIGHT, BEST = catalog()["light"], catalog()["best"]
EASY = "What is 2+2?"
MODEL = {"model": "light", "engine": "fake", "quantization": "int8"}


class Talkative(FakeEngine):
    """Knows its queue and its cache; a question "reveal ..." fails with the question in the message."""

    may_start: ClassVar[threading.Event | None] = None

    async def start(self) -> None:
        if Talkative.may_start is not None:
            await asyncio.to_thread(Talkative.may_start.wait)
        await super().start()

    def stats(self) -> EngineStats:
        share = 0.5 if self.spec.name == "light" else None
        return EngineStats(2, 1, share, 4, 100, 60, None, 0)

    async def generate(self, request: GenerationRequest) -> Any:
        question = str(request.messages[-1]["content"])
        if question.startswith("reveal"):
            raise GenerationError(f"Cannot say {question}.")
        async with aclosing(super().generate(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                yield delta


class Otel:
    """Exporters in memory."""

    def __init__(self) -> None:
        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("test")

    def chats(self) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name.startswith("chat ")]

    def metrics(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}


def request(text: str = "hi", **settings: Any) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}], **settings)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return samples(registry).get((f"chancellor_{name}", frozenset(labels.items())))
