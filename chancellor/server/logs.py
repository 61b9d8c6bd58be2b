"""One line of JSON for each request. What was asked and answered is not in it unless that is asked for."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chancellor.server.errors import Refusal
from chancellor.server.static import PATHS
from chancellor.telemetry.requests import CANCELLED

__all__ = ["CLIENT_GONE", "RequestLog", "json_lines", "logging_json"]

logger = logging.getLogger("chancellor.server.requests")
CLIENT_GONE: Final = 499
"""The status, in logs and metrics only, of a request whose caller hung up before there was a response."""
_QUIET: Final = PATHS | {"/health", "/ready", "/metrics"}
_TALKING: Final = ("chancellor", "uvicorn.error")
"""Those whose records below WARNING are logged, too."""
_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestLog:
    """Notes each request: who, what, how long. The outermost layer, so that nothing is missed."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, *, ends: bool = True) -> None:
        self._app, self._ends = app, ends  # whether a request is cancelled as the server ends, not by its caller
        self._requests = Counter(
            "chancellor_http_requests",
            "Requests by route, status and outcome: streams that fail or are cut off have a status of 200, too.",
            ("route", "status", "outcome"),
            registry=registry,
        )
        self._duration = Histogram(
            "chancellor_http_request_duration_seconds",
            "Time until the last byte of the response.",
            ("route",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._running = Gauge("chancellor_http_requests_running", "Requests under way.", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_GONE  # until there is another
        identity = _identity(Headers(scope=scope).get("x-request-id"))
        notes: dict[str, Any] = {}
        scope.setdefault("state", {})["notes"] = notes

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        self._running.inc()
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            notes["error"] = CANCELLED
            if self._ends and status == CLIENT_GONE:
                refusal = Refusal(503, "The server is shutting down.", "server_error", "shutting_down", retry_after_s=1)
                await refusal.response()(scope, receive, noted)
            raise
        except Exception as error:
            logger.exception("A request failed", extra={"request_id": identity})
            notes["error"] = type(error).__name__
            if status != CLIENT_GONE:
                raise  # the server is to cut it off
            await Refusal(500, "The server failed; its log says why.", "server_error").response()(scope, receive, noted)
        finally:
            self._running.dec()
            took = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, str(status), _outcome(status, notes.get("error"))).inc()
            self._duration.labels(route).observe(took)
            client = scope.get("client")
            fields = {
                "request_id": identity,
                "client": client[0] if client else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_s": round(took, 4),
                **notes,
            }
            level = logging.DEBUG if scope["path"] in _QUIET and status != 500 else logging.INFO
            logger.log(level, "request", extra=fields)


def _outcome(status: int, error: str | None) -> str:
    if error == CANCELLED or status == CLIENT_GONE:
        return CANCELLED
    return "ok" if error is None and status < 400 else "error"


def _identity(given: str | None) -> str:
    """Take the caller's own id, if it is one that can be written into logs and headers."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


def json_lines(stream: IO[str]) -> logging.Handler:
    """Return a handler that writes a JSON object for each record."""
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            reserved_attrs=[*RESERVED_ATTRS, "color_message", "vllm_process_name"],  # what others have added
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    return handler


@contextmanager
def logging_json(stream: IO[str]) -> Iterator[None]:
    """Write what any library logs, or warns of, as lines of JSON; our own loggers' records from INFO on."""
    handler, root = json_lines(stream), logging.getLogger()
    handler.addFilter(_told)
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKING}
    for talking in levels:
        talking.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
        for talking, level in levels.items():
            talking.setLevel(level)


def _told(record: logging.LogRecord) -> bool:
    """Leave out that requests were cancelled when the time to drain was over: their own lines say so."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
