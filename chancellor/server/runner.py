"""`chancellor serve`: uvicorn around the application, from the first log line to the last request."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Final

import uvicorn
from sse_starlette.sse import AppStatus
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool, default_pool
from chancellor.errors import InvalidInputError
from chancellor.server.app import create_app
from chancellor.server.logs import json_lines
from chancellor.server.options import ServeOptions
from chancellor.server.readiness import Readiness

__all__ = ["serve"]

_BACKLOG: Final = 2048
_LARGEST_HEAD: Final = 64 * 1024
_LOGGERS = ("chancellor", "uvicorn.error")


def serve(
    catalog: Catalog | str | Path | None,
    options: ServeOptions,
    *,
    log: IO[str],
    on_listening: Callable[[str], None] = lambda _: None,
    on_ready: Callable[[Readiness], None] = lambda _: None,
    pool: EnginePool | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing more, finish what is under way, and close the engines.

    Args:
        catalog: the models, or the path of a catalog file; None finds one as the command line does.
        options: limits, keys, and the rest.
        log: where the lines of JSON go.
        on_listening: called with the server's URL.
        on_ready: called when the engines that were to start have done so.
        pool: where the engines run; None takes the process's.

    Raises:
        InvalidInputError: the address cannot be had.
        ChancellorError: an engine that was to start did not.
    """
    pool = pool if pool is not None else default_pool()
    handler = json_lines(log)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
        logger.addFilter(_told)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    app = create_app(catalog, options, pool=pool)
    readiness: Readiness = app.state.chancellor.readiness
    listening = _listen(options)
    # Streams would be cut off at the signal; here they have as long as all the others.
    AppStatus.enable_automatic_graceful_drain = False
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=_Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
            timeout_keep_alive=30,
        )
    )
    server.readiness = readiness

    def ended() -> None:
        if readiness.error is not None:
            server.should_exit = True
        else:
            on_ready(readiness)

    readiness.on_end = ended
    on_listening(_url(options.host, listening))
    try:
        with suppress(SystemExit, KeyboardInterrupt):  # what uvicorn raises again after it has drained
            server.run(sockets=[listening])
    finally:
        listening.close()
        pool.close()
        for logger in loggers:
            logger.removeHandler(handler)
            logger.removeFilter(_told)
    if readiness.error is not None:
        raise readiness.error


class _Server(uvicorn.Server):
    """Says that it drains as soon as it does: balancers that ask then send no more."""

    readiness: Readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # the second signal, whichever it is, waits for nothing
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.readiness.draining = True
        await super().shutdown(sockets)
        if self.force_exit:  # which leaves out the application's own end
            await self.lifespan.shutdown()


class _Protocol(HttpToolsProtocol):
    """Takes no head that is too large; uvicorn's own takes any."""

    _head: int | None = None
    """Bytes of the head that is coming in, but for its first piece; None elsewhere."""

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        before = self._head
        super().data_received(data)
        if before is not None and self._head is not None:
            self._head = before + len(data)
            if self._head > _LARGEST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")


def _told(record: logging.LogRecord) -> bool:
    """Leave out that requests were cancelled when the time to drain was over: their own lines say so."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(_BACKLOG)  # from now on nobody who has been told the URL is refused
    except OSError as error:
        listening.close()
        raise InvalidInputError(
            f"The address {options.host}:{options.port} cannot be had: {error.strerror or error}.",
            hint="Take another --port, or 0 for a free one.",
        ) from error
    listening.set_inheritable(False)
    return listening


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
