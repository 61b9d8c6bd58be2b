"""What a connection may be: how large and how slow a head, how many at once. uvicorn's own takes any."""

import asyncio
import http
import json
import logging
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Counter
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chancellor.server.errors import Refusal
from chancellor.server.options import ServeOptions
from chancellor.server.readiness import Readiness

__all__ = ["Protocol", "protocol_of"]

logger = logging.getLogger(__name__)
_LARGEST_HEAD: Final = 64 * 1024
_FLUSH_S: Final = 5.0
"""How long a caller may take to read the rest of what is sent to it before its connection is closed."""


def protocol_of(options: ServeOptions, readiness: Readiness, registry: CollectorRegistry) -> type["Protocol"]:
    """Return the protocol of one server's connections, with its limits and its count of those it has refused."""
    counter = Counter(
        "chancellor_http_refused_connections",
        "Connections closed for what came before any request: heads that are slow, large or broken, or too many.",
        ("status",),
        registry=registry,
    )

    class Limited(Protocol):
        limits = options
        state = readiness
        refused = counter
        idle: ClassVar[dict[Protocol, None]] = {}

    return Limited


class Protocol(HttpToolsProtocol):
    """A connection. One on which no request is under way has a deadline at all times, and makes room for others."""

    limits: ClassVar[ServeOptions]
    state: ClassVar[Readiness]
    refused: ClassVar[Counter]
    idle: ClassVar[dict["Protocol", None]]
    """Those with no request under way, the one that has been so for longest first."""
    _head: int | None = None
    """Bytes of the head that is coming in, but for its first piece; None elsewhere."""
    _under_way = 0
    _deadline: asyncio.TimerHandle | None = None
    """When the head that is coming in, or is to come, has to be complete. Between requests uvicorn has one of its own,
    which ends with the next byte."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle[self] = None
        self._wait()
        if len(self.connections) > self.limits.max_connections:
            longest = next(iter(self.idle))
            if longest is not self:
                longest.end()
            else:
                message = f"{len(self.connections) - 1} connections are open, and no more are taken. Ask again later."
                self.refuse(Refusal(503, message, "server_error", "too_many_connections", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.idle.pop(self, None)
        self._wait_no_more()

    def data_received(self, data: bytes) -> None:
        before = self._head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if before is not None and self._head is not None:
            self._head = before + len(data)
            if self._head > _LARGEST_HEAD:
                self.send_400_response("The head of the request is too large.")
                return
        if not self._under_way and self._deadline is None:  # else any byte would put it off for ever
            self._wait()

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()
        if not self._under_way:
            self._wait()

    def on_headers_complete(self) -> None:
        self._head = None
        self._wait_no_more()
        super().on_headers_complete()
        self._under_way += 1
        self.idle.pop(self, None)
        if self.state.draining:  # the caller's next one is for another server
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self._under_way -= 1
        super().on_response_complete()
        if not self._under_way and not self.transport.is_closing():
            self.idle[self] = None
            if self._head is not None:  # begun while the answer was under way: its time begins now
                self._unset_keepalive_if_required()
                self._wait()

    def timeout_keep_alive_handler(self) -> None:
        self.end()

    def send_400_response(self, msg: str) -> None:
        self.refuse(Refusal(400, msg))

    def refuse(self, refusal: Refusal) -> None:
        """Answer what is no request for the application, and close."""
        self.refused.labels(str(refusal.status)).inc()
        client = self.client[0] if self.client else None
        logger.info("connection refused", extra={"client": client, "status": refusal.status, "reason": refusal.message})
        if not self._under_way:  # else it would stand in the middle of an answer
            body = json.dumps(refusal.body()).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            lines = [f"HTTP/1.1 {refusal.status} {http.HTTPStatus(refusal.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in (headers | refusal.headers()).items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.end()

    def end(self) -> None:
        """Close the connection, also if nobody reads what has been sent on it."""
        self.idle.pop(self, None)
        self.transport.close()
        self.loop.call_later(_FLUSH_S, self.transport.abort)

    def _wait(self) -> None:
        self._wait_no_more()
        self._deadline = self.loop.call_later(self.limits.head_timeout_s, self._too_late)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._head is None:
            self.end()
        else:
            message = f"The head of the request was not complete after {self.limits.head_timeout_s:g} s."
            self.refuse(Refusal(408, message, code="slow_request"))
