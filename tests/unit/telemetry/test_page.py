"""docs/telemetry.md says what there is, and its code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from chancellor import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.server.logs import RequestLog
from chancellor.server.protocol import protocol_of
from chancellor.telemetry import PrometheusExporter, RequestRecord
from tests.serving import app_of
from tests.unit.telemetry.tools import LIGHT, Otel, request

PAGE = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text(encoding="utf-8")


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
    service = app_of(pool).state.chancellor
    protocol_of(service.options, service.readiness, registry)
    described = [*exporter.describe(), *registry.collect()]
    names = {metric.name + suffix.get(metric.type, "") for metric in described} | set(otel.metrics())
    exporter.close()
    assert (
        set(re.findall(r"^\| `((?:chancellor_|gen_ai\.client|gen_ai\.server)[a-z_.]+)`", PAGE, re.MULTILINE)) == names
    )
