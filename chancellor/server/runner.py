"""`chancellor serve`: uvicorn around the application, from the first log line to the last request."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Final

import uvicorn

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool, default_pool
from chancellor.errors import InvalidInputError
from chancellor.server.app import create_app
from chancellor.server.logs import logging_json
from chancellor.server.options import ServeOptions
from chancellor.server.protocol import protocol_of
from chancellor.server.readiness import Readiness

__all__ = ["serve"]

_BACKLOG: Final = 2048
_LOOK_S: Final = 0.1
_PATIENCE_S: Final = 3.0
"""How long an engine that is starting may take to notice that it need not."""
_OTHER_FILES: Final = 256
"""Files that are open beside connections: engines, libraries, logs."""


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

    An engine whose start can neither be interrupted nor is over after a few seconds is left behind: see `starts_left`.

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
    with logging_json(log):
        _serve(catalog, options, on_listening, on_ready, pool if pool is not None else default_pool())


def _serve(
    catalog: Catalog | str | Path | None,
    options: ServeOptions,
    on_listening: Callable[[str], None],
    on_ready: Callable[[Readiness], None],
    pool: EnginePool,
) -> None:
    options = options.model_copy(update={"max_connections": _connections(options.max_connections)})
    app = create_app(catalog, options, pool=pool)
    readiness: Readiness = app.state.chancellor.readiness
    listening = _listen(options)
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol_of(options, readiness, app.state.registry),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
            timeout_keep_alive=30,
        )
    )
    server.readiness, server.delay_s = readiness, options.drain_delay_s

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
        pool.close(patience_s=_PATIENCE_S)
    if readiness.error is not None:
        raise readiness.error


class _Server(uvicorn.Server):
    """Says that it drains as soon as it does: balancers that ask then send no more."""

    readiness: Readiness
    delay_s: float

    async def main_loop(self) -> None:
        await super().main_loop()
        self.readiness.draining = True
        if self.readiness.error is None:  # else it has not been ready, and nobody sends anything
            until = time.monotonic() + self.delay_s
            while time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110 - set by a signal's handler
                await asyncio.sleep(_LOOK_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # the second signal, whichever it is, waits for nothing
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.readiness.draining = True
        await super().shutdown(sockets)
        if self.force_exit:  # which leaves out the application's own end
            await self.lifespan.shutdown()


def _connections(most: int) -> int:
    """Let the process have the files for so many connections; return how many those that it gets are enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return most


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
