"""A response that is a stream of server-sent events.

It takes each piece as it will be sent, and does for the whole stream, not for each piece, what has to be watched:
callers who hang up, callers who stop reading, silence.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from chancellor.server.exchange import gone

__all__ = ["EventStream"]

_PING: Final = b": ping\n\n"


class EventStream(StreamingResponse):
    """Sends events as they come, and a comment after each time without one."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str] | None = None,
        ping_s: float,
        stalled_s: float,
    ) -> None:
        """Make a response.

        Args:
            events: encoded events; closed whatever happens.
            headers: beside those that every such stream has.
            ping_s: seconds of silence before a comment says that there is more to come.
            stalled_s: seconds that a caller may read nothing; then the stream ends.
        """
        # Neither caches nor proxies are to keep events back.
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        self._events, self._ping_s, self._stalled_s = events, ping_s, stalled_s
        self._sent = 0.0
        self._sending_since: float | None = None

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(work) for work in (self._write(send), self._keep_alive(send), gone(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _write(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._sent = clock()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                self._sending_since = clock()
                await send({"type": "http.response.body", "body": event, "more_body": True})
                self._sent, self._sending_since = self._sending_since, None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """Ping when nothing is sent. Return when nobody reads."""
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            if self._sending_since is not None:
                left = self._sending_since + self._stalled_s - now
                if left <= 0:
                    return
            else:
                left = self._sent + self._ping_s - now
                if left <= 0:
                    self._sending_since = self._sent = now
                    await send({"type": "http.response.body", "body": _PING, "more_body": True})
                    self._sending_since = None
                    continue
            await asyncio.sleep(min(left, self._ping_s, self._stalled_s))
