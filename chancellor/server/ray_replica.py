"""A replica under Ray Serve: a whole endpoint with its engines, asked through Ray and not through a socket."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from prometheus_client import generate_latest
from ray import serve
from sse_starlette.sse import AppStatus
from starlette.types import Message, Scope

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool
from chancellor.server.app import create_app
from chancellor.server.choice import Chooser
from chancellor.server.logs import json_lines
from chancellor.server.options import ServeOptions
from chancellor.server.readiness import Readiness
from chancellor.server.service import Service

__all__ = ["Engines"]

logger = logging.getLogger(__name__)
_PATIENCE: Final = 120.0, 3.0
"""How long a replica may be without any engine: so many seconds, or so many times what the first start took."""


class Engines:
    """The application and its engines. Ray sends requests once those that are to be there from the beginning are.

    Args:
        catalog: the models.
        given: options of the endpoint; the others come from this process's environment.

    Raises:
        ChancellorError: an engine that was to start did not.
    """

    async def __init__(self, catalog: Catalog, given: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        self._options = ServeOptions(**given)
        self._catalog, self._pool = catalog, EnginePool()
        _log()
        AppStatus.enable_automatic_graceful_drain = False  # Ray waits for streams
        self._app = create_app(catalog, self._options, pool=self._pool)
        self._service: Service = self._app.state.chancellor
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._mending: asyncio.Task[Readiness] | None = None
        self._empty: float | None = None
        ended = asyncio.Event()
        self._service.readiness.on_end = ended.set
        await self._lifespan.__aenter__()
        await ended.wait()
        if (error := self._service.readiness.error) is not None:
            await asyncio.to_thread(self._pool.close)
            raise error

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[list[Message], None]:
        """Yield what the application sends for a request, several messages together where they come so."""
        arrived: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        asked: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def receive() -> Message:
            nonlocal asked
            if asked is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            message, asked = asked, None
            return message

        async def run() -> None:
            try:
                await self._app({**scope, "asgi": {"version": "3.0"}}, receive, arrived.put)
            finally:
                arrived.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            last: Message | None = {}
            while last is not None:
                messages = [await arrived.get()]
                while not arrived.empty():
                    messages.append(arrived.get_nowait())
                last = messages[-1]
                if found := [message for message in messages if message is not None]:
                    yield found
            await task
        finally:
            gone.set()
            task.cancel()
            await asyncio.wait({task})

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name, and its metrics as Prometheus reads them."""
        text = await asyncio.to_thread(generate_latest, self._app.state.registry)
        return serve.get_replica_context().replica_id.unique_id, text.decode()

    async def check_health(self) -> None:
        """Called by Ray every few seconds; what it raises three times in a row gets the replica replaced.

        A dead engine is no reason: the pool starts another one with the next request, and if none comes, this does.

        Raises:
            ChancellorError: it could not be started again.
            RuntimeError: there has been no engine for too long.
        """
        readiness = self._service.readiness
        if readiness.error is not None:
            raise readiness.error
        # Asks the host's thread: if that hangs, so does this, until Ray gives it up.
        if await asyncio.to_thread(self._pool.stats) or not readiness.started:
            self._empty = None
            return
        now = time.monotonic()
        since = self._empty = self._empty or now
        least, times = _PATIENCE
        if now - since > max(least, times * max(readiness.started.values())):
            raise RuntimeError(f"No engine has run for {now - since:.0f} s.")
        if self._mending is None:
            logger.warning("No engine runs: they are started again")
            self._mending = asyncio.create_task(self._mend())
        elif self._mending.done():
            error, self._mending = self._mending.result().error, None
            if error is not None:
                raise error

    async def _mend(self) -> Readiness:
        again = Readiness(self._catalog, self._options, self._pool, Chooser(self._catalog, self._pool))
        await again.prepare()
        return again

    async def __del__(self) -> None:
        """Called by Ray when the last request has been answered."""
        if not hasattr(self, "_mending"):
            return
        self._service.readiness.draining = True
        if self._mending is not None:
            self._mending.cancel()
        await self._lifespan.__aexit__(None, None, None)
        await asyncio.to_thread(self._pool.close)


def _log() -> None:
    """Write our log to stderr, which Ray collects."""
    log = logging.getLogger("chancellor")
    log.addHandler(json_lines(sys.stderr))
    log.setLevel(logging.INFO)
    log.propagate = False
