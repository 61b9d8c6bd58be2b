"""What stands before the routes: keys, names, limits. Each is plain ASGI, so that streams pass through untouched."""

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chancellor.server.errors import Refusal
from chancellor.server.static import PATHS

__all__ = ["OPEN", "BodyLimit", "Concurrency", "Hosts", "Keys", "local_names", "path_of"]

OPEN: Final = PATHS | {"/health", "/ready"}
"""Nobody needs a key for these."""
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def path_of(scope: Scope) -> str:
    """Return the path below the one that the application is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


class Keys:
    """Lets in who has one of the keys. All are compared, in constant time, so that time tells nothing."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and path_of(scope) not in OPEN:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            key = given.strip().encode("latin-1", "replace")
            same = [hmac.compare_digest(key, one) for one in self._keys]
            if scheme.lower() != "bearer" or not any(same):
                message = "The API key is wrong." if given else "There is no API key."
                refusal = Refusal(401, f"{message} Send one: Authorization: Bearer KEY.", code="invalid_api_key")
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Hosts:
    """Lets in who calls the server by one of its names, so that no web page reaches it by a name of the page's own.

    Probes call it by an address, and are told nothing but that it answers. `/ready` names models.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, tuple(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._names and path_of(scope) != "/health":
            name = _hostname(Headers(scope=scope).get("host", ""))
            if name not in self._names:
                hint = "Start it with --allowed-host NAME if that is its name."
                await Refusal(421, f"This server is not {name!r}. {hint}", code="wrong_host").response()(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


def _hostname(host: str) -> str:
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name.lower() if not port or port.startswith(":") else host
    return host.partition(":")[0].lower()


def local_names(host: str) -> tuple[str, ...]:
    """Return the names of a server that listens on `host`, if only this machine reaches it; else nothing."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return ()
    return (*_LOCAL, host) if local else ()


class Concurrency:
    """Sends away what is more than can be under way at once; looks at engines and state are always let through."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self.running >= self._most:
            refusal = Refusal(
                429,
                f"{self.running} requests are under way, and no more are taken. Ask again later.",
                "rate_limit_error",
                "server_busy",
                retry_after_s=1.0,
            )
            await refusal.response()(scope, receive, send)
            return
        self.running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= 1


class BodyLimit:
    """Takes in a request's body before the routes see it: not too much, and not too slowly."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._most:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > self._most:
                        await self._too_large(scope, receive, send)
                        return
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            refusal = Refusal(408, f"The request was not complete after {self._seconds:g} s.", code="slow_request")
            await _closing(refusal, scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def again() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, again, send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._most / 2**20
        refusal = Refusal(413, f"The request is larger than {limit:.3g} MiB. Send less.", code="request_too_large")
        await _closing(refusal, scope, receive, send)


async def _closing(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and do not wait for what the caller may still want to send."""
    response = refusal.response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)
