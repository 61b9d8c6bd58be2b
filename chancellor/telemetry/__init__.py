"""What running engines tell monitoring systems: OpenTelemetry, Prometheus, a function of yours.

The names below are imported when they are first used: the last two need the extra `telemetry`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chancellor.telemetry.otel import instrument
    from chancellor.telemetry.prometheus import PrometheusExporter
    from chancellor.telemetry.requests import RequestRecord, recording

_HOME = {
    "PrometheusExporter": "chancellor.telemetry.prometheus",
    "RequestRecord": "chancellor.telemetry.requests",
    "instrument": "chancellor.telemetry.otel",
    "recording": "chancellor.telemetry.requests",
}

__all__ = ["PrometheusExporter", "RequestRecord", "instrument", "recording"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'chancellor.telemetry' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
