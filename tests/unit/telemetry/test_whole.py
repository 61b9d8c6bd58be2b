"""What holds for records, spans and metrics alike."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler, get_usage_metadata_callback
from prometheus_client import CollectorRegistry, generate_latest

from chancellor import ChatModels, ChatVLLM, create_chancellor
from chancellor.engines import EnginePool
from chancellor.errors import GenerationError
from chancellor.nodes import generation_node
from chancellor.telemetry import PrometheusExporter, RequestRecord
from tests.fakes import catalog
from tests.unit.telemetry.tools import EASY, LIGHT, Otel, request, until


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
