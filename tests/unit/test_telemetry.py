"""Records, spans and metrics of requests, over a fake engine and the real SDKs."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler, get_usage_metadata_callback
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from chancellor import Catalog, ChatModels, ChatVLLM, ModelSpec, create_chancellor
from chancellor.engines import Delta, EnginePool, EngineStats, GenerationRequest
from chancellor.errors import EngineDiedError, EngineStartError, GenerationError
from chancellor.nodes import generation_node
from chancellor.server.logs import RequestLog
from chancellor.telemetry import PrometheusExporter, RequestRecord, instrument, prometheus, recording, requests
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


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> Iterator[EnginePool]:
    Talkative.may_start = None
    pool = EnginePool(Talkative)
    yield pool
    pool.close()


@pytest.fixture
def records() -> Iterator[list[RequestRecord]]:
    taken: list[RequestRecord] = []
    with recording(taken.append):
        yield taken


@pytest.fixture
def otel() -> Iterator[Otel]:
    otel = Otel()
    with instrument(otel.tracers, otel.meters):
        yield otel


def request(text: str = "hi", **settings: Any) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}], **settings)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return samples(registry).get((f"chancellor_{name}", frozenset(labels.items())))


# Records


def test_an_answer_makes_one_record(pool: EnginePool, records: list[RequestRecord]) -> None:
    before = time.time()
    list(pool.generate(LIGHT, request(temperature=0.2, top_p=0.9, max_tokens=7, seed=3, stop=("x",), stream=True)))
    (record,) = records
    assert before <= record.started_at <= record.ended_at <= time.time()
    assert (record.model, record.engine, record.quantization) == ("light", "fake", "int8")
    assert (record.duration_s, record.time_to_first_token_s, record.queue_time_s) == (0.5, 0.1, None)
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (3, 3, 1)
    assert (record.finish_reason, record.error, record.answered, record.outcome) == ("stop", None, True, "stop")
    assert (record.temperature, record.top_p, record.max_tokens) == (0.2, 0.9, 7)
    assert (record.seed, record.stop, record.streamed) == (3, ("x",), True)
    assert record.time_per_output_token_s == pytest.approx(0.2)


def test_a_failure_makes_one_record(pool: EnginePool, records: list[RequestRecord]) -> None:
    with pytest.raises(EngineDiedError):
        list(pool.generate(LIGHT, request("die")))
    (record,) = records
    assert (record.error, record.finish_reason, record.outcome) == ("EngineDiedError", None, "EngineDiedError")
    assert record.engine == "fake"
    assert record.duration_s is not None
    assert record.output_tokens is record.time_to_first_token_s is record.time_per_output_token_s is None


def test_a_failed_start_is_a_failed_request_without_an_engine(
    pool: EnginePool, fake_engine: type[FakeEngine], records: list[RequestRecord]
) -> None:
    fake_engine.fail_starts = 1
    with pytest.raises(EngineStartError):
        list(pool.generate(LIGHT, request()))
    (record,) = records
    assert (record.error, record.engine, record.duration_s) == ("EngineStartError", None, None)
    assert record.quantization == "int8"


def test_who_cancels_stops_listening_or_gives_up_during_a_start(
    pool: EnginePool, fake_engine: type[FakeEngine], records: list[RequestRecord]
) -> None:
    async def cancel(begun: Callable[[], object]) -> None:
        async def ask() -> None:
            async for _ in pool.agenerate(LIGHT, request("a question of several words")):
                pass

        task = asyncio.create_task(ask())
        await asyncio.to_thread(until, begun)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    Talkative.may_start = threading.Event()
    asyncio.run(cancel(lambda: pool._residents._all))
    until(lambda: len(records) == 1)
    Talkative.may_start.set()
    pool.start(LIGHT)

    fake_engine.delta_s = 0.05
    asyncio.run(cancel(lambda: fake_engine.requests))
    until(lambda: len(records) == 2)
    stream = pool.generate(LIGHT, request("a question of several words", stream=True))
    next(stream)
    stream.close()
    until(lambda: len(records) == 3)
    assert [record.error for record in records] == [requests.CANCELLED] * 3
    assert [record.engine for record in records] == [None, "fake", "fake"]
    assert [record.duration_s is None for record in records] == [True, False, False]
    assert {record.finish_reason for record in records} == {None}


def test_whoever_leaves_after_the_last_delta_was_answered(pool: EnginePool, records: list[RequestRecord]) -> None:
    async def leave() -> None:
        async with aclosing(pool.agenerate(LIGHT, request())) as deltas:
            async for delta in deltas:
                if delta.finish_reason is not None:
                    break

    asyncio.run(leave())
    until(lambda: records)
    assert [record.outcome for record in records] == ["stop"]


def test_the_start_of_the_engine_is_no_part_of_the_duration(
    records: list[RequestRecord], otel: Otel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 50.0, 53.0])  # made, handed over, failed
    monkeypatch.setattr(requests, "time", SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 1000.0))
    with suppress(KeyError), requests.Observation(LIGHT, request()) as observed:
        observed.handed_to(FakeEngine(LIGHT))
        raise KeyError
    (record,), (span,) = records, otel.chats()
    assert (record.started_at, record.ended_at, record.duration_s, record.error) == (997.0, 1000.0, 3.0, "KeyError")
    assert (span.start_time, span.end_time) == (997 * 10**9, 1000 * 10**9)


@pytest.mark.parametrize(
    ("output", "first", "expected"), [(1, 0.1, None), (None, 0.1, None), (5, None, None), (5, 0.6, None), (5, 0.1, 0.1)]
)
def test_time_per_output_token(
    records: list[RequestRecord], output: int | None, first: float | None, expected: float | None
) -> None:
    with requests.Observation(LIGHT, request()) as observed:
        observed.handed_to(FakeEngine(LIGHT))
        observed.last = Delta(
            "", finish_reason="stop", output_tokens=output, inference_time_s=0.5, time_to_first_token_s=first
        )
    assert records[0].time_per_output_token_s == expected


def test_one_record_each_however_many_ask_at_once(pool: EnginePool, records: list[RequestRecord]) -> None:
    async def ask(number: int) -> None:
        async for _ in pool.agenerate(LIGHT if number % 2 else BEST, request(max_tokens=number + 1)):
            pass

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(20)))

    asyncio.run(all_of_them())
    assert sorted(record.max_tokens for record in records) == list(range(1, 21))
    assert {record.model: record.quantization for record in records} == {"light": "int8", "best": None}


def test_a_sink_that_fails_harms_nothing(pool: EnginePool, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: RequestRecord) -> None:
        raise RuntimeError

    taken: list[RequestRecord] = []
    with recording(broken), recording(taken.append):
        assert "".join(delta.text for delta in pool.generate(LIGHT, request())) == "light says: hi"
    assert len(taken) == 1
    assert "A sink of request records failed" in caplog.text


def test_without_a_sink_no_record_is_made(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RequestRecord] = []
    original = requests.Observation._record

    def make(observation: requests.Observation, kind: type[BaseException] | None) -> RequestRecord:
        made.append(original(observation, kind))
        return made[-1]

    monkeypatch.setattr(requests.Observation, "_record", make)
    list(pool.generate(LIGHT, request()))
    assert made == []
    taken: list[RequestRecord] = []
    with recording(taken.append):
        list(pool.generate(LIGHT, request()))
    list(pool.generate(LIGHT, request()))
    assert made == taken
    assert len(made) == 1


# OpenTelemetry


def test_a_span(pool: EnginePool, otel: Otel) -> None:
    list(pool.generate(LIGHT, request(temperature=0, max_tokens=7, seed=3, stop=("x",), stream=True)))
    (span,) = otel.chats()
    assert (span.name, span.kind, span.parent) == ("chat light", SpanKind.CLIENT, None)
    assert span.status.status_code == StatusCode.UNSET
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fake",
        "gen_ai.request.model": "light",
        "gen_ai.response.model": "light",
        "gen_ai.request.temperature": 0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.1,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "chancellor.quantization": "int8",
    }


def test_a_failed_span_and_a_cancelled_one(pool: EnginePool, otel: Otel, fake_engine: type[FakeEngine]) -> None:
    with pytest.raises(EngineDiedError):
        list(pool.generate(LIGHT, request("die")))
    fake_engine.delta_s = 0.02
    stream = pool.generate(LIGHT, request("one two three four"))
    next(stream)
    stream.close()
    until(lambda: len(otel.chats()) == 2)
    failed, cancelled = otel.chats()
    assert failed.status.status_code == StatusCode.ERROR
    assert cancelled.status.status_code == StatusCode.UNSET
    errors = [(span.attributes or {}).get("error.type") for span in otel.chats()]
    assert errors == ["EngineDiedError", "cancelled"]
    assert all("gen_ai.response.model" not in (span.attributes or {}) for span in otel.chats())
    points = otel.metrics()["gen_ai.client.operation.duration"].data.data_points
    assert {point.attributes["error.type"] for point in points} == set(errors)


def test_the_callers_span_is_the_parent_across_threads_and_loops(pool: EnginePool, otel: Otel) -> None:
    models = ChatModels(catalog(), pool=pool)
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile()
    light = models["light"]

    async def agenerate() -> None:
        async for _ in pool.agenerate(LIGHT, request()):
            pass

    async def astream(model: Any, question: Any, **how: Any) -> None:
        async for _ in model.astream(question, **how):
            pass

    asked = {"messages": [("user", EASY)]}
    ways: dict[str, Callable[[], object]] = {
        "generate": lambda: list(pool.generate(LIGHT, request())),
        "agenerate": lambda: asyncio.run(agenerate()),
        "invoke": lambda: light.invoke(EASY),
        "ainvoke": lambda: asyncio.run(light.ainvoke(EASY)),
        "stream": lambda: list(light.stream(EASY)),
        "astream": lambda: asyncio.run(astream(light, EASY)),
        "graph": lambda: graph.invoke(asked),
        "agraph": lambda: asyncio.run(graph.ainvoke(asked)),
        "graph stream": lambda: list(graph.stream(asked, stream_mode="messages")),
        "graph astream": lambda: asyncio.run(astream(graph, asked, stream_mode="messages")),
        "graph batch": lambda: graph.batch([asked]),
    }

    def run(name: str) -> None:
        with otel.tracer.start_as_current_span(name):
            ways[name]()

    threads = [threading.Thread(target=run, args=(name,)) for name in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    outer = {
        span.context.span_id: span for span in otel.spans.get_finished_spans() if span.name in ways and span.context
    }
    parents = [outer[chat.parent.span_id].name for chat in otel.chats() if chat.parent is not None]
    assert sorted(parents) == sorted(ways)
    assert len(otel.chats()) == len(ways)
    assert len({chat.context.trace_id for chat in otel.chats() if chat.context}) == len(ways)


def test_the_metrics_of_the_convention(pool: EnginePool, otel: Otel) -> None:
    for spec in (LIGHT, BEST, BEST):
        list(pool.generate(spec, request()))
    metrics = otel.metrics()
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "gen_ai.client.operation.duration": "s",
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.server.request.duration": "s",
        "gen_ai.server.time_to_first_token": "s",
        "gen_ai.server.time_per_output_token": "s",
    }
    counts, bounds = {}, {}
    for name, metric in metrics.items():
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            assert attributes.pop("gen_ai.operation.name") == "chat"
            assert attributes.pop("gen_ai.provider.name") == "fake"
            assert attributes.pop("gen_ai.response.model") == attributes["gen_ai.request.model"]
            kind = attributes.get("gen_ai.token.type")
            counts[name.removeprefix("gen_ai."), attributes["gen_ai.request.model"], kind] = (point.count, point.sum)
            bounds[name] = (point.explicit_bounds[0], point.explicit_bounds[-1])
    assert counts["client.operation.duration", "best", None] == (2, 1.0)
    assert counts["server.request.duration", "light", None] == (1, 0.5)
    assert counts["server.time_to_first_token", "light", None] == (1, 0.1)
    assert counts["server.time_per_output_token", "light", None] == (1, 0.2)
    assert counts["client.token.usage", "best", "input"] == (2, 6)
    assert counts["client.token.usage", "best", "output"] == (2, 6)
    assert bounds["gen_ai.client.token.usage"] == (1, 67108864)
    assert bounds["gen_ai.client.operation.duration"] == (0.01, 81.92)
    assert bounds["gen_ai.server.time_to_first_token"] == (0.001, 10.0)
    assert bounds["gen_ai.server.time_per_output_token"] == (0.01, 2.5)


def test_a_failed_start_is_counted(pool: EnginePool, otel: Otel, fake_engine: type[FakeEngine]) -> None:
    fake_engine.fail_starts = 1
    with pytest.raises(EngineStartError):
        list(pool.generate(BEST, request()))
    (metric,) = otel.metrics().values()
    assert metric.name == "gen_ai.client.operation.duration"
    (point,) = metric.data.data_points
    assert point.sum > 0
    assert point.attributes["error.type"] == "EngineStartError"
    assert point.attributes["gen_ai.provider.name"] == "vllm"


def test_instrumenting_ends_and_begins_again(pool: EnginePool) -> None:
    otel = Otel()
    uninstrument = instrument(otel.tracers, otel.meters)
    list(pool.generate(LIGHT, request()))
    uninstrument()
    uninstrument()
    list(pool.generate(LIGHT, request()))
    assert len(otel.chats()) == 1
    with instrument(otel.tracers, otel.meters):
        list(pool.generate(LIGHT, request()))
    (point,) = otel.metrics()["gen_ai.server.request.duration"].data.data_points
    assert len(otel.chats()) == point.count == 2


# Prometheus


def test_the_metrics_of_requests(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        for _ in range(2):
            list(pool.generate(LIGHT, request()))
        list(pool.generate(BEST, request()))
        with pytest.raises(EngineDiedError):
            list(pool.generate(LIGHT, request("die")))
        fake_engine.fail_starts = 1
        with pytest.raises(EngineStartError):
            list(pool.generate(LIGHT, request()))
        assert sample(registry, "requests_total", outcome="stop", **MODEL) == 2
        assert sample(registry, "requests_total", outcome="EngineDiedError", **MODEL) == 1
        assert sample(registry, "requests_total", outcome="EngineStartError", **{**MODEL, "engine": "none"}) == 1
        assert sample(registry, "requests_total", outcome="stop", model="best", engine="fake", quantization="none") == 1
        assert sample(registry, "request_duration_seconds_sum", **MODEL) == 1.0
        assert sample(registry, "request_duration_seconds_count", **MODEL) == 2
        assert sample(registry, "request_duration_seconds_bucket", le="0.64", **MODEL) == 2
        assert sample(registry, "time_to_first_token_seconds_sum", **MODEL) == pytest.approx(0.2)
        assert sample(registry, "time_per_output_token_seconds_sum", **MODEL) == pytest.approx(0.4)
        assert sample(registry, "input_tokens_total", **MODEL) == 6
        assert sample(registry, "output_tokens_total", **MODEL) == 6
        assert sample(registry, "cached_tokens_total", **MODEL) == 2
        # What the fake does not tell is not there, not zero.
        assert not [name for name, _ in samples(registry) if name.startswith("chancellor_queue_time")]


def test_each_engine_shows(pool: EnginePool) -> None:
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        pool.start(LIGHT)
        pool.start(BEST)
        for model in ("light", "best"):
            assert sample(registry, "engine_requests_running", model=model) == 2
            assert sample(registry, "engine_requests_waiting", model=model) == 1
            assert sample(registry, "engine_requests_running_peak", model=model) == 4
            assert sample(registry, "engine_output_tokens_total", model=model) == 100
            assert sample(registry, "engine_prefix_cache_queries_total", model=model) == 60
            assert sample(registry, "engine_prefix_cache_hits_total", model=model) is None
            assert sample(registry, "engine_preemptions_total", model=model) == 0
        assert sample(registry, "engine_kv_cache_usage_ratio", model="light") == 0.5
        assert sample(registry, "engine_kv_cache_usage_ratio", model="best") is None


def test_a_scrape_waits_for_no_engine_and_starts_no_thread(pool: EnginePool) -> None:
    registry, Talkative.may_start = CollectorRegistry(), threading.Event()
    with PrometheusExporter(registry, pool):
        before = set(threading.enumerate())
        assert samples(registry) == {}
        assert not any(thread.name == "chancellor-engines" for thread in set(threading.enumerate()) - before)
        starter = threading.Thread(target=pool.start, args=(LIGHT,))
        starter.start()
        until(lambda: pool._residents._all)
        assert samples(registry) == {}
        assert not FakeEngine.started
        Talkative.may_start.set()
        starter.join()
        assert sample(registry, "engine_requests_running", model="light") == 2


@pytest.mark.parametrize("stuck", [True, False])
def test_engines_that_do_not_tell_leave_the_rest(
    pool: EnginePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stuck: bool
) -> None:
    released = threading.Event()

    def stats() -> dict[str, EngineStats]:
        if stuck:
            released.wait()
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(prometheus, "_SCRAPE_S", 0.05)
    monkeypatch.setattr(pool, "stats", stats)
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        list(pool.generate(LIGHT, request()))
        assert sample(registry, "requests_total", outcome="stop", **MODEL) == 1
    assert ("did not tell within" in caplog.text) == stuck
    released.set()


def test_the_exporter_comes_and_goes_as_one(pool: EnginePool) -> None:
    registry = CollectorRegistry(auto_describe=True)
    exporter = PrometheusExporter(registry, pool)
    before = requests._sinks
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusExporter(registry, pool)
    assert requests._sinks == before
    list(pool.generate(LIGHT, request()))
    assert samples(registry)
    exporter.close()
    exporter.close()
    assert samples(registry) == {}
    assert len(requests._sinks) == len(before) - 1
    with PrometheusExporter(registry, pool):
        assert sample(registry, "requests_total", outcome="stop", **MODEL) is None


# All of it


def test_no_text_of_prompts_or_answers_gets_out(
    pool: EnginePool, otel: Otel, records: list[RequestRecord], caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        answers = ChatVLLM(model="light", catalog=catalog(), pool=pool)
        assert "zebra" in str(answers.invoke("the zebra").text)
        list(answers.stream([("system", "mind the zebra"), ("user", "the zebra")]))
        with pytest.raises(GenerationError, match="zebra"):
            answers.invoke("reveal the zebra")
        stream = pool.generate(LIGHT, request("zebra zebra zebra"))
        next(stream)
        stream.close()
        until(lambda: len(records) == 4)
        spans = [str(span.to_json()) for span in otel.spans.get_finished_spans()]
        metrics = otel.reader.get_metrics_data()
        assert len(spans) == 4
        assert metrics is not None
        told = [*spans, metrics.to_json(), generate_latest(registry).decode(), repr(records), caplog.text]
    assert all("light" in text for text in told[:-1])
    assert not [text for text in told if "zebra" in text.lower()]


async def _stream(graph: Any, asked: Any) -> None:
    async for _ in graph.astream(asked, stream_mode="messages"):
        pass


@pytest.mark.parametrize(
    "run",
    [
        lambda graph, asked: graph.invoke(asked),
        lambda graph, asked: asyncio.run(graph.ainvoke(asked)),
        lambda graph, asked: list(graph.stream(asked, stream_mode="messages")),
        lambda graph, asked: asyncio.run(_stream(graph, asked)),
    ],
    ids=["invoke", "ainvoke", "stream", "astream"],
)
def test_langchains_usage_callback_counts_through_the_graph(
    pool: EnginePool, run: Callable[[Any, Any], object]
) -> None:
    graph = create_chancellor(catalog(), generate=generation_node(ChatModels(catalog(), pool=pool))).compile()
    with get_usage_metadata_callback() as usage:
        run(graph, {"messages": [("user", EASY)]})
        run(graph, {"messages": [("user", EASY)]})
        run(graph, {"messages": [("user", "Please explain to me in detail how the tides of the sea work")]})
    light = {"input_tokens": 6, "output_tokens": 10, "total_tokens": 16, "input_token_details": {"cache_read": 2}}
    assert usage.usage_metadata["light"] == light
    assert set(usage.usage_metadata) == {"light", "strong"}
    handler = UsageMetadataCallbackHandler()
    graph.invoke({"messages": [("user", EASY)]}, {"callbacks": [handler]})
    assert handler.usage_metadata["light"]["total_tokens"] == 8


@pytest.mark.parametrize("first", ["chancellor.telemetry", "chancellor.telemetry.requests", "chancellor.engines"])
def test_the_import_is_light(first: str) -> None:
    code = f"""
import sys
import {first}, chancellor.telemetry
from chancellor.telemetry import RequestRecord, recording
assert sorted(chancellor.telemetry.__all__) == ["PrometheusExporter", "RequestRecord", "instrument", "recording"]
loaded = [name for name in ("opentelemetry", "prometheus_client", "vllm", "torch") if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("instrument", "opentelemetry", "opentelemetry-api"),
        ("PrometheusExporter", "prometheus_client", "prometheus-client"),
    ],
)
def test_a_missing_package_is_named(name: str, module: str, package: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from chancellor.errors import MissingDependencyError
try:
    from chancellor.telemetry import {name}
except MissingDependencyError as error:
    assert {package!r} in str(error) and "chancellor[telemetry]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The page

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_page_runs(
    pool: EnginePool, records: list[RequestRecord], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    ports: list[int] = []
    spec = ModelSpec(name="smollm2-135m-int8", source="fake/light", trinity=96.0, parameters=1_000)
    monkeypatch.setattr(Catalog, "load", lambda *_: Catalog([spec]))
    monkeypatch.setattr("chancellor.engines.pool._default", pool)
    monkeypatch.setattr("prometheus_client.start_http_server", ports.append)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/telemetry.md", "exec"), names)
    assert records
    if "exporter" in names:
        assert f"localhost:{ports[0]}/metrics" in PAGE
        names["exporter"].close()


def test_the_page_names_every_metric(pool: EnginePool, otel: Otel) -> None:
    list(pool.generate(LIGHT, request()))
    exporter = PrometheusExporter(CollectorRegistry(), pool)
    suffix = {"counter": "_total"}
    registry = CollectorRegistry()
    RequestLog(Starlette(), registry)
    described = [*exporter.describe(), *registry.collect()]
    names = {metric.name + suffix.get(metric.type, "") for metric in described} | set(otel.metrics())
    exporter.close()
    assert (
        set(re.findall(r"^\| `((?:chancellor_|gen_ai\.client|gen_ai\.server)[a-z_.]+)`", PAGE, re.MULTILINE)) == names
    )
