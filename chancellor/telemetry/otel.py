"""Spans and metrics of OpenTelemetry, by its semantic conventions for generative AI. Prompts and answers stay here."""

from typing import Any, Final, Self

from chancellor.errors import MissingDependencyError
from chancellor.telemetry import buckets
from chancellor.telemetry.requests import CANCELLED, RequestRecord, subscribe, unsubscribe

try:
    from opentelemetry import metrics, trace
except ImportError as error:
    raise MissingDependencyError.of("opentelemetry-api", "telemetry") from error

__all__ = ["Instrumentation", "instrument"]

_NAME: Final = "chancellor"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
"""The last release of the general conventions that has those for generative AI."""
_OPERATION: Final = "chat"
_PROVIDER: Final = "vllm"
"""Where a request ended before it had an engine."""


def instrument(
    tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
) -> "Instrumentation":
    """Trace and measure every request of this process's engines from now on.

    A span's parent is the span that was current where the request was made, whatever the thread or the loop.

    Args:
        tracer_provider: None uses the global one.
        meter_provider: None uses the global one.

    Returns:
        What ends it: call it, or use it as a context manager.
    """
    return Instrumentation(
        trace.get_tracer(_NAME, tracer_provider=tracer_provider, schema_url=_SCHEMA),
        metrics.get_meter(_NAME, meter_provider=meter_provider, schema_url=_SCHEMA),
    )


class Instrumentation:
    """A subscription to all requests; it ends when it is called, or its block is left."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._operation_duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=buckets.DURATION_S,
        )
        self._token_usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=buckets.TOKENS,
        )
        self._request_duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="Generative AI server request duration such as time-to-last byte or last output token.",
            explicit_bucket_boundaries_advisory=buckets.DURATION_S,
        )
        self._time_to_first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="Time to generate first token for successful responses.",
            explicit_bucket_boundaries_advisory=buckets.TIME_TO_FIRST_TOKEN_S,
        )
        self._time_per_output_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Time per output token generated after the first token for successful responses.",
            explicit_bucket_boundaries_advisory=buckets.TIME_PER_OUTPUT_TOKEN_S,
        )
        subscribe(self._take)

    def __call__(self) -> None:
        """Stop; once more does nothing."""
        unsubscribe(self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self()

    def _take(self, record: RequestRecord) -> None:
        common = _common(record)
        span = self._tracer.start_span(
            f"{_OPERATION} {record.model}",
            kind=trace.SpanKind.CLIENT,
            attributes=common | _details(record),
            start_time=_nanoseconds(record.started_at),
        )
        if record.error is not None and record.error != CANCELLED:  # to stop listening is no failure
            span.set_status(trace.StatusCode.ERROR)
        self._measure(record, common, trace.set_span_in_context(span))
        span.end(_nanoseconds(record.ended_at))

    def _measure(self, record: RequestRecord, common: dict[str, Any], context: Any) -> None:
        """Fill the histograms; the context ties their exemplars to the span."""
        whole = record.duration_s if record.duration_s is not None else record.ended_at - record.started_at
        self._operation_duration.record(whole, common, context)
        if record.duration_s is not None:
            self._request_duration.record(record.duration_s, common, context)
        for kind, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens is not None:
                self._token_usage.record(tokens, {**common, "gen_ai.token.type": kind}, context)
        if record.time_to_first_token_s is not None:
            self._time_to_first_token.record(record.time_to_first_token_s, common, context)
        if record.time_per_output_token_s is not None:
            self._time_per_output_token.record(record.time_per_output_token_s, common, context)


def _common(record: RequestRecord) -> dict[str, Any]:
    """Return what both spans and metrics carry; it has few values in all."""
    return _told(
        {
            "gen_ai.operation.name": _OPERATION,
            "gen_ai.provider.name": record.engine or _PROVIDER,
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model if record.answered else None,
            "error.type": record.error,
            "chancellor.quantization": record.quantization,
        }
    )


def _details(record: RequestRecord) -> dict[str, Any]:
    """Return what only spans carry."""
    return _told(
        {
            "gen_ai.request.temperature": record.temperature,
            "gen_ai.request.top_p": record.top_p,
            "gen_ai.request.max_tokens": record.max_tokens,
            "gen_ai.request.seed": record.seed,
            "gen_ai.request.stop_sequences": list(record.stop) or None,
            "gen_ai.request.stream": record.streamed or None,
            "gen_ai.response.finish_reasons": [record.finish_reason] if record.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": record.time_to_first_token_s if record.streamed else None,
            "gen_ai.usage.input_tokens": record.input_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "chancellor.queue_time_s": record.queue_time_s,
        }
    )


def _told(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
