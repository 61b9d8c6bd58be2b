"""A replica under Ray Serve: a whole endpoint with its engines, asked through Ray and not through a socket."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

from prometheus_client import generate_latest
from ray import serve
from starlette.types import Message, Scope

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool
from chancellor.server.app import create_app
from chancellor.server.options import ServeOptions
from chancellor.server.ray_health import Health, elsewhere
from chancellor.server.ray_ingress import log_to_stderr
from chancellor.server.service import Service

__all__ = ["Engines"]

_PIECE_S: Final = 0.001
"""Each piece costs Ray's processes about a millisecond. So there are no more of them than this allows, however many
streams there are; what comes meanwhile goes out joined."""
_LONGEST_S: Final = 0.25
_LEAVE_S: Final = 5.0
"""How long the application may take to notice that the caller has hung up. To be cancelled means something else to it:
that the server ends."""


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
        self._app = create_app(catalog, self._options, pool=self._pool)
        self._service: Service = self._app.state.chancellor
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._open = 0
        ended, readiness = asyncio.Event(), self._service.readiness
        readiness.on_end, readiness.optional = ended.set, elsewhere
        self._health = Health(catalog, self._options, self._pool, readiness)
        await self._lifespan.__aenter__()
        await ended.wait()
        if (error := readiness.error) is not None:
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
            try:
                await asyncio.wait({task}, timeout=_LEAVE_S)
            finally:
                task.cancel()
            await asyncio.wait({task})

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name, and its metrics as Prometheus reads them."""
        text = await asyncio.to_thread(generate_latest, self._app.state.registry)
        return serve.get_replica_context().replica_id.unique_id, text.decode()

    async def check_health(self) -> None:
        """Called by Ray every few seconds; what it raises three times in a row gets the replica replaced.

        Raises:
            ChancellorError: engines cannot be started again.
            RuntimeError: there has been no engine for too long.
        """
        await self._health.check()

    async def __del__(self) -> None:
        """Called by Ray when the last request has been answered."""
        if not hasattr(self, "_health"):
            return
        self._service.readiness.draining = True
        await self._health.close()
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
