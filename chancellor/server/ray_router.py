"""What stands before the replicas under Ray Serve. It holds nothing but the requests that are under way.

Ray's proxy answers 500 to a request whose replica dies. Here, one that nothing has been answered to is asked again.
"""

import asyncio
import logging
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from chancellor.server.errors import Refusal
from chancellor.server.forms import event
from chancellor.server.guard import BodyLimit, Concurrency, Hosts, Keys, local_names
from chancellor.server.logs import RequestLog
from chancellor.server.options import ServeOptions
from chancellor.server.ray_metrics import gathered, merged
from chancellor.server.routes import router as routes
from chancellor.server.static import router as page

__all__ = ["PASSING", "Router"]

logger = logging.getLogger(__name__)
PASSING: Final = 10_000
"""Requests that one router passes on at once where nobody says how many; the replicas have limits of their own."""
_KEPT: Final = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client",
    "server",
)  # fmt: skip
_LOOK_S: Final = 10.0
"""How long a look at models or state waits for a replica."""
_MARGIN_S: Final = 10.0
"""By how much the router's patience is longer than that of the replicas, which say more about what is wrong."""
_QUIET: Final = 30.0, 4.0
"""How long a replica may send nothing of what it has begun: so many seconds, or so many times what is between two pings
of a stream."""
_ERROR: Final = b'data: {"error":'
_LOST: Final = (RayActorError, ObjectLostError)
_ROUTES: Final = (*routes.routes, *page.routes)


class Router:
    """Passes requests on.

    Args:
        replicas: Ray's handle of them.
        routers: Ray's handle of all routers, this one among them.
        options: of the endpoint.
        retries: how often a request that nothing has been answered to is sent again.
    """

    def __init__(self, replicas: Any, routers: Any, options: ServeOptions, retries: int) -> None:
        self._replicas, self._routers, self._options, self._retries = replicas, routers, options, retries
        self._answers = replicas.options(method_name="answer", stream=True)
        self._quiet_s = max(_QUIET[0], _QUIET[1] * options.ping_s)

    def application(self) -> Starlette:
        """Return it as an ASGI application; its `state.registry` has what this router counts."""
        options, keys, registry = self._options, self._options.keys(), CollectorRegistry()
        most = options.max_requests if "max_requests" in options.model_fields_set else PASSING
        hosts = options.allowed_hosts or (() if keys else local_names(options.host))
        app = Starlette(
            routes=[Route("/health", _health), Route("/metrics", self._metrics), Mount("/", self)],
            middleware=[  # before a request gets to wait for a replica
                Middleware(_WithoutId),
                Middleware(RequestLog, registry=registry, ends=False),
                Middleware(Hosts, names=hosts),
                Middleware(Keys, keys=keys),
                Middleware(Concurrency, most=most),
                Middleware(BodyLimit, most=int(options.max_body_mib * 2**20), seconds=options.body_timeout_s),
            ],
        )
        app.state.registry = registry
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        found = ((route.matches(scope)[0], route) for route in _ROUTES)
        scope["route"] = next((route for match, route in found if match is not Match.NONE), None)  # for the log
        body = (await receive()).get("body", b"")  # all of it: see BodyLimit
        asked = {name: scope[name] for name in _KEPT if name in scope}
        answer = _Answer(send)
        try:
            await self._ask(asked, body, answer)
        except TimeoutError:
            message = "The replica that answered is silent." if answer.begun else "No replica could answer in time."
            refusal = Refusal(503, message, "server_error", "no_replica", retry_after_s=5)
        except BackPressureError:
            message = "Too many requests wait already. Ask again later."
            refusal = Refusal(429, message, "rate_limit_error", "server_busy", retry_after_s=1)
        except DeploymentUnavailableError:
            refusal = Refusal(503, "No replica could be started.", "server_error", "no_replica", retry_after_s=30)
        except (*_LOST, asyncio.CancelledError) as error:
            if _hung_up(error):
                raise
            message = "The replica that answered has died." if answer.begun else "Replicas died again and again."
            refusal = Refusal(503, f"{message} Ask again.", "server_error", "replica_died", retry_after_s=1)
        except RayError:
            logger.exception("A replica failed")
            refusal = Refusal(500, "The server failed; its log says why.", "server_error", "replica_failed")
        else:
            if answer.failed:
                scope["state"]["notes"]["error"] = "stream_failed"
            return
        if answer.ended:
            return
        scope["state"]["notes"]["error"] = refusal.code
        if answer.sent:
            await answer.end(event(refusal.body()))
        else:
            await refusal.response()(scope, receive, send)

    async def _ask(self, asked: dict[str, Any], body: bytes, answer: "_Answer") -> None:
        posted = asked["method"] == "POST"
        patience = self._options.timeout_s + _MARGIN_S if posted else _LOOK_S
        now = asyncio.get_running_loop().time
        async with asyncio.timeout(patience) as until:
            for left in range(self._retries, -1, -1):
                response = self._answers.remote(asked, body)
                try:
                    async for messages in response:
                        # What cannot be done on one machine may be on another.
                        if posted and left and not answer.begun and messages[0].get("status") == 503:
                            break
                        if answer.begun:
                            until.reschedule(None)  # the caller may read as slowly as it likes
                        await answer.take(messages)
                        if answer.begun:
                            until.reschedule(now() + self._quiet_s)
                    else:
                        return
                except (*_LOST, asyncio.CancelledError) as error:
                    if _hung_up(error) or answer.begun or not left:
                        raise
                    logger.warning("A replica has died: what it had not begun to answer is asked again")
                finally:
                    if not answer.ended:
                        response.cancel()
                answer.forget()

    async def _metrics(self, _: Request) -> Response:
        replicas, routers = await asyncio.gather(gathered(self._replicas), gathered(self._routers))
        text = await asyncio.to_thread(merged, {"replica": replicas, "router": routers})
        return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


def _hung_up(error: BaseException) -> bool:
    """Return whether the request was cancelled here: a replica that ends its requests looks the same to Ray."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


class _WithoutId:
    """Leaves the request's id out of the response: Ray's proxy adds it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bare(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, bare)


class _Answer:
    """An answer on its way to the caller: held back until it begins, as long as another replica may give it.

    The comments with which a stream says that there is more to come are no beginning.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._streamed = False
        self._refusal: bytes | None = None
        """What comes instead of the rest of a stream whose head is sent already."""
        self.sent = self.begun = self.ended = False
        """Whether the caller has its head, something of its body, all of it."""
        self.failed = False
        """Whether it is a stream that has told an error."""

    async def take(self, messages: list[Message]) -> None:
        """Pass messages of the application on."""
        for message in messages:
            if message["type"] == "http.response.body":
                await self._take_body(message, message.get("body", b""), last=not message.get("more_body", False))
                continue
            streamed = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            if not self.sent:
                self._start, self._streamed = message, streamed
            self._refusal = b"" if self._streamed and not streamed else None

    async def _take_body(self, message: Message, body: bytes, *, last: bool) -> None:
        if self._refusal is not None:
            self._refusal += body
            if last:
                self.failed = True
                await self.end(b"data: %s\n\n" % self._refusal)
            return
        self.failed = self.failed or (self._streamed and _ERROR in body)
        comments = self._streamed and all(not line or line.startswith(b":") for line in body.splitlines())
        self.begun = self.begun or last or (bool(body) and not comments)
        if self._start is not None and (last or body):
            start, self._start, self.sent = self._start, None, True
            await self._send(start)
        if self.sent:
            await self._send(message)
        self.ended = self.ended or last

    def forget(self) -> None:
        """Begin anew."""
        self._start = self._refusal = None

    async def end(self, error: bytes) -> None:
        """End what was sent in part and cannot go on.

        Raises:
            ConnectionError: its form has no place for an error; the connection is closed instead.
        """
        if not self._streamed:
            raise ConnectionError("The answer cannot be completed.")
        self.begun = self.ended = True
        await self._send({"type": "http.response.body", "body": error, "more_body": False})
