"""Spans and metrics of requests, over a fake engine and the real SDK."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from chancellor import ChatModels, create_chancellor
from chancellor.engines import EnginePool
from chancellor.errors import EngineDiedError, EngineStartError
from chancellor.nodes import generation_node
from chancellor.telemetry import instrument
from tests.fakes import FakeEngine, catalog
from tests.unit.telemetry.tools import BEST, EASY, LIGHT, Otel, request, until


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
