"""A replica under Ray Serve: a whole endpoint with its engines, asked through Ray and not through a socket."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from prometheus_client import generate_latest
from ray import serve
from sse_starlette.sse import AppStatus
from starlette.types import Message, Scope

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.errors import ChancellorError
from chancellor.server.app import create_app
from chancellor.server.choice import Chooser
from chancellor.server.options import ServeOptions
from chancellor.server.ray_router import log_to_stderr
from chancellor.server.readiness import Readiness
from chancellor.server.service import Service

__all__ = ["Engines"]

logger = logging.getLogger(__name__)
_PATIENCE: Final = 120.0, 3.0
"""How long a replica may be without any engine: so many seconds, or so many times what the first start took."""
_PIECE_S: Final = 0.001
"""Each piece costs Ray's processes about a millisecond. So there are no more of them than this allows, however many
streams there are; what comes meanwhile goes out joined."""
_LONGEST_S: Final = 0.25


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
        log_to_stderr()
        AppStatus.enable_automatic_graceful_drain = False  # Ray waits for streams
        self._app = create_app(catalog, self._options, pool=self._pool)
        self._service: Service = self._app.state.chancellor
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._mending: asyncio.Task[ChancellorError | None] | None = None
        self._empty: float | None = None
        self._open = 0
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
        self._open += 1
        try:
            last: Message | None = {}
            while last is not None:
                messages = [await arrived.get()]
                while not arrived.empty():
                    messages.append(arrived.get_nowait())
                last = messages[-1]
                if found := _joined([message for message in messages if message is not None]):
                    yield found
                    if found[-1].get("more_body"):
                        await asyncio.sleep(min(self._open * _PIECE_S, _LONGEST_S))
            await task
        finally:
            self._open -= 1
            gone.set()
            task.cancel()
            await asyncio.wait({task})

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name, and its metrics as Prometheus reads them."""
        text = await asyncio.to_thread(generate_latest, self._app.state.registry)
        return serve.get_replica_context().replica_id.unique_id, text.decode()

    async def check_health(self) -> None:
        """Called by Ray every few seconds; what it raises three times in a row gets the replica replaced.

        A dead engine is no reason: the pool starts another one with the next request, and this does so before it comes.

        Raises:
            ChancellorError: it could not be started again.
            RuntimeError: there has been no engine for too long.
        """
        readiness = self._service.readiness
        if readiness.error is not None:
            raise readiness.error
        # Asks the host's thread: if that hangs, so does this, until Ray gives it up.
        running = bool(await asyncio.to_thread(self._pool.stats))
        # Dead, or on its way: what was stopped to make room for another one is neither.
        dead = [spec for spec in map(self._catalog.usable, readiness.started) if self._pool.state(spec) == "starting"]
        if running:
            self._empty = None
        elif readiness.started:
            self._have_patience()
        if dead or (readiness.started and not running):
            error = self._mended(dead)
            if error is not None and not running:
                raise error

    def _have_patience(self) -> None:
        now = time.monotonic()
        self._empty = self._empty or now
        least, times = _PATIENCE
        if now - self._empty > max(least, times * max(self._service.readiness.started.values())):
            raise RuntimeError(f"No engine has run for {now - self._empty:.0f} s.")

    def _mended(self, dead: list[ModelSpec]) -> ChancellorError | None:
        """Have engines started again, unless that is under way; return why it has failed, if it has."""
        error = None
        if self._mending is not None and self._mending.done():
            error, self._mending = self._mending.result(), None
        if error is None and self._mending is None:
            logger.warning("Started again without waiting for a request: %s", [spec.name for spec in dead] or "all")
            self._mending = asyncio.create_task(self._mend(dead))
        return error

    async def _mend(self, dead: list[ModelSpec]) -> ChancellorError | None:
        if not dead:
            again = Readiness(self._catalog, self._options, self._pool, Chooser(self._catalog, self._pool))
            await again.prepare()
            return again.error
        try:
            for spec in dead:
                await self._pool.astart(spec)
        except ChancellorError as error:
            logger.warning("No start: %s", error)
            return error
        return None

    async def __del__(self) -> None:
        """Called by Ray when the last request has been answered."""
        if not hasattr(self, "_mending"):
            return
        self._service.readiness.draining = True
        if self._mending is not None:
            self._mending.cancel()
        await self._lifespan.__aexit__(None, None, None)
        await asyncio.to_thread(self._pool.close)


def _joined(messages: list[Message]) -> list[Message]:
    """Return the messages with the bodies that follow each other made one."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else {}
        if message["type"] == before.get("type") == "http.response.body":
            body = before.get("body", b"") + message.get("body", b"")
            joined[-1] = {**message, "body": body}
        else:
            joined.append(message)
    return joined
