"""What stands before the replicas under Ray Serve. It holds nothing but the requests that are under way.

Ray's proxy answers 500 to a request whose replica dies. Here, one that nothing has been answered to is asked again.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from chancellor.server.errors import Refusal
from chancellor.server.forms import event
from chancellor.server.guard import BodyLimit, Keys
from chancellor.server.logs import json_lines
from chancellor.server.options import ServeOptions

__all__ = ["Router", "log_to_stderr", "merged", "routing"]

logger = logging.getLogger(__name__)
_KEPT: Final = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client",
    "server",
)  # fmt: skip
_LOOK_S: Final = 10.0
"""How long a look at models or state waits for a replica."""
_MARGIN_S: Final = 10.0
"""By how much the router's patience is longer than that of the replicas, which say more about what is wrong."""
_LOST: Final = (RayActorError, ObjectLostError)


def routing(given: dict[str, Any], retries: int) -> Any:
    """Return the class that Ray Serve makes routers of; bound to it are the replicas.

    Args:
        given: options of the endpoint; the others come from each router's environment.
        retries: how often a request that nothing has been answered to is sent again.
    """

    def application() -> Starlette:
        log_to_stderr()
        replicas = serve.get_deployment_handle("Engines", app_name=serve.get_replica_context().app_name)
        return Router(replicas, ServeOptions(**given), retries).application()

    return serve.ingress(application)()


def log_to_stderr() -> None:
    """Write our log there as lines of JSON; Ray collects them."""
    log = logging.getLogger("chancellor")
    log.addHandler(json_lines(sys.stderr))
    log.setLevel(logging.INFO)
    log.propagate = False


class Router:
    """Passes requests on.

    Args:
        replicas: Ray's handle of them.
        options: of the endpoint.
        retries: how often a request that nothing has been answered to is sent again.
    """

    def __init__(self, replicas: Any, options: ServeOptions, retries: int) -> None:
        self._replicas, self._options, self._retries = replicas, options, retries
        self._answers = replicas.options(method_name="answer", stream=True)

    def application(self) -> Starlette:
        """Return it as an ASGI application."""
        options = self._options
        return Starlette(
            routes=[Route("/health", _health), Route("/metrics", self._metrics), Mount("/", self)],
            middleware=[  # before a request gets to wait for a replica
                Middleware(Keys, keys=options.keys()),
                Middleware(BodyLimit, most=int(options.max_body_mib * 2**20), seconds=options.body_timeout_s),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = (await receive()).get("body", b"")  # all of it: see BodyLimit
        asked = {name: scope[name] for name in _KEPT if name in scope}
        answer = _Answer(send)
        try:
            await self._ask(asked, body, answer)
        except TimeoutError:
            refusal = Refusal(503, "No replica could answer in time.", "server_error", "no_replica", retry_after_s=5)
        except BackPressureError:
            message = "Too many requests wait already. Ask again later."
            refusal = Refusal(429, message, "rate_limit_error", "server_busy", retry_after_s=1)
        except DeploymentUnavailableError:
            refusal = Refusal(503, "No replica could be started.", "server_error", "no_replica", retry_after_s=30)
        except _LOST as error:
            logger.warning("A request was lost with its replica: %s", type(error).__name__)
            message = "The replica that answered has died." if answer.begun else "Replicas died again and again."
            refusal = Refusal(503, f"{message} Ask again.", "server_error", "replica_died", retry_after_s=1)
        except RayError:
            logger.exception("A replica failed")
            refusal = Refusal(500, "The server failed; its log says why.", "server_error")
        else:
            return
        if not answer.begun:
            await refusal.response()(scope, receive, send)
        elif not answer.ended:
            await answer.end(event(refusal.body()))

    async def _ask(self, asked: dict[str, Any], body: bytes, answer: "_Answer") -> None:
        posted = asked["method"] == "POST"
        patience = self._options.timeout_s + _MARGIN_S if posted else _LOOK_S
        async with asyncio.timeout(patience) as until:
            for left in range(self._retries, -1, -1):
                response = self._answers.remote(asked, body)
                try:
                    async for messages in response:
                        # What cannot be done on one machine may be on another.
                        if posted and left and not answer.begun and messages[0].get("status") == 503:
                            break
                        await answer.take(messages)
                        if answer.begun and until.when() is not None:
                            until.reschedule(None)
                    else:
                        return
                except _LOST:
                    if answer.begun or not left:
                        raise
                    logger.warning("A replica has died: what it had not begun to answer is asked again")
                finally:
                    if not answer.ended:
                        response.cancel()
                answer.forget()

    async def _metrics(self, _: Request) -> Response:
        asked = self._replicas.broadcast("metrics")
        try:
            found = await asked.results_async(timeout_s=_LOOK_S, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            return Refusal(503, "There is no replica.", "server_error", "no_replica", retry_after_s=5).response()
        texts: dict[str, str] = dict(one for one in found if isinstance(one, tuple))
        return Response(merged(texts), media_type=CONTENT_TYPE_LATEST)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


class _Answer:
    """An answer on its way to the caller: held back until its first byte, as long as another replica may give it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._streamed = False
        self.begun = self.ended = False

    async def take(self, messages: list[Message]) -> None:
        """Pass messages of the application on."""
        for message in messages:
            body = message["type"] == "http.response.body"
            if not body:
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message["headers"] = kept  # Ray's proxy adds the same one
                self._streamed = any(value.startswith(b"text/event-stream") for _, value in kept)
            last = body and not message.get("more_body", False)
            if self.begun:
                await self._send(message)
            else:
                self._held.append(message)
                if last or (body and message.get("body")):
                    self.begun = True
                    for held in self._held:
                        await self._send(held)
            self.ended = self.ended or last

    def forget(self) -> None:
        """Begin anew."""
        self._held.clear()

    async def end(self, error: bytes) -> None:
        """End what was begun and cannot go on.

        Raises:
            ConnectionError: its form has no place for an error; the connection is closed instead.
        """
        if not self._streamed:
            raise ConnectionError("The answer cannot be completed.")
        await self._send({"type": "http.response.body", "body": error, "more_body": False})


def merged(texts: Mapping[str, str]) -> bytes:
    """Return the metrics of several replicas, given by their names, as one text, in which each series has the name."""

    class Collector:
        def collect(self) -> list[Metric]:
            families: dict[str, Metric] = {}
            for replica, text in texts.items():
                for family in text_string_to_metric_families(text):
                    whole = families.setdefault(
                        family.name, Metric(family.name, family.documentation, family.type, family.unit)
                    )
                    for sample in family.samples:
                        whole.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)
