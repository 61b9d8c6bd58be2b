"""The endpoint over an engine without a model: inside of this process, and behind a real socket."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI

from chancellor.engines import Delta, EnginePool, GenerationRequest, TokenLogprob
from chancellor.errors import EngineBusyError, GenerationError
from chancellor.server import ServeOptions, create_app
from chancellor.server.protocol import protocol_of
from tests.fakes import FakeEngine, catalog

QUESTION = [{"role": "user", "content": "hello there"}]


class Scripted(FakeEngine):
    """Does what the question says: some words are orders, all others are answered as the fake does."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        question = str(request.messages[-1]["content"] if request.prompt is None else request.prompt)
        if question == "busy":
            error = EngineBusyError("Too many wait.")
            error.retry_after_s = 6.2
            raise error
        if question == "boom":
            raise ValueError("secret detail")
        if question in ("wait", "break", "crash", "endless"):
            async for delta in self._ordered(question, request):
                yield delta
            return
        if request.logprobs is not None:
            self.requests.append(request)
            for delta in _with_logprobs(request.stream):
                yield delta
            return
        async for delta in super().generate(request):
            yield delta

    async def _ordered(self, order: str, request: GenerationRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        try:
            if order == "wait":
                await asyncio.sleep(3600)
            yield Delta("It begins")
            while order == "endless":
                await asyncio.sleep(0.005)
                yield Delta(" and" * 10_000)
            raise GenerationError("The fake gave up.") if order == "break" else ValueError("secret detail")
        finally:
            self.aborted.append(order)


def _with_logprobs(stream: bool) -> list[Delta]:
    """Two tokens, the second with a neighbour that was not possible."""
    tokens = (
        TokenLogprob(5, "Hé", -0.5, {5: -0.5}, (("Hé", -0.5),)),
        TokenLogprob(6, " you", -0.25, {6: -0.25, 7: float("-inf")}, ((" you", -0.25), ("!", float("-inf")))),
    )
    figures = {"finish_reason": "length", "input_tokens": 3, "output_tokens": 2, "engine": "fake"}
    if stream:
        return [Delta("Hé", (5,), tokens[:1]), Delta(" you", (6,), tokens[1:], **figures)]  # type: ignore[arg-type]
    return [Delta("Hé you", (5, 6), tokens, **figures)]  # type: ignore[arg-type]


@contextmanager
def pooled() -> Iterator[EnginePool]:
    """Yield a pool of scripted engines."""
    FakeEngine.reset()
    pool = EnginePool(Scripted)
    try:
        yield pool
    finally:
        pool.close()
        FakeEngine.reset()


def app_of(pool: EnginePool, *, analyze: Any = None, select: Any = None, **options: Any) -> FastAPI:
    """Return the endpoint with the fakes' catalog; no engine starts before it is asked."""
    serve = ServeOptions(**{"preload": ("none",), **options})
    return create_app(catalog(), serve, pool=pool, analyze=analyze, select=select)


@asynccontextmanager
async def client_of(app: FastAPI, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the application, which has begun."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client,
    ):
        yield client


def events(text: str) -> list[Any]:
    """Return the data of a stream's events; the last of a complete one is "[DONE]"."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        assert all(line.startswith("data: ") for line in lines), lines
        found += [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


class Server:
    """A real server on a free port of 127.0.0.1, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        service = app.state.chancellor
        protocol = protocol_of(service.options, service.readiness, app.state.registry)
        config = uvicorn.Config(
            app, http=protocol, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listening.close()
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        """Return a connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
        """Return a connection on which a request was sent."""
        connection, content = self.connect(), json.dumps(body).encode()
        connection.sendall(head(path, len(content)) + content)
        return connection


def head(path: str, length: int | None, *more: str) -> bytes:
    """Return the head of a POST request with JSON; without a length its body is chunked."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", size, *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
    return got


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for what is to become true in other threads."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not happen."
        time.sleep(0.01)
