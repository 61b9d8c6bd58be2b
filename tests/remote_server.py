"""A small server of OpenAI's protocol on loopback, which does what the question says."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **more}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def words(*texts: str) -> list[Any]:
    """Return the chunks of a stream that is as it should be."""
    pieces = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]
    return [*pieces, chunk({}, "stop"), {**chunk(), "usage": USAGE}, "[DONE]"]


class Server:
    """Answers "one two three"; `streams`, `wholes` and `statuses` say by question what comes instead.

    In a stream, a number is a pause in seconds, "cut" breaks the connection, and "hang" waits until the caller leaves.
    """

    def __init__(self) -> None:
        self.port = 0
        self.models: Any = {"object": "list", "data": [{"id": "other"}, {"id": "m"}]}
        self.models_statuses: list[int] = []
        """Of the next looks; the last one stays."""
        self.health_status = 404
        self.silent = False
        """Whether nothing at all is answered."""
        self.streams: dict[str, list[Any]] = {}
        self.first: dict[str, list[Any]] = {}
        """The same, for the first time only."""
        self.wholes: dict[str, Any] = {}
        self.statuses: dict[str, tuple[int, Any, dict[str, str]]] = {}
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.left: list[str] = []
        """Questions whose callers have left before the end."""
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def body(self) -> dict[str, Any]:
        """The last request's body."""
        return self.requests[-1][1]

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        config = uvicorn.Config(
            self._app,
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            log_level="critical",
            lifespan="off",
            interface="asgi3",
        )
        self._server = server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        while not server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def drain(self) -> None:
        """Refuse new connections, and end what is under way."""
        assert self._server is not None
        self._server.should_exit = True

    def stop(self) -> None:
        """Break all connections."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(10)
            self._server = None

    async def _app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        while self.silent:  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.02)
        path, body = scope["path"], b""
        while scope["method"] == "POST":
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if path == "/v1/models":
            status = self.models_statuses[0] if self.models_statuses else 200
            self.models_statuses = self.models_statuses[1:] or self.models_statuses
            await _json(send, status, self.models if status == 200 else {"error": {"message": "no list"}})
        elif path == "/health":
            await _json(send, self.health_status, {})
        else:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            asked = json.loads(body)
            self.requests.append((path, asked, headers))
            question = asked["messages"][-1]["content"] if "messages" in asked else str(asked["prompt"])
            await self._answer(question, asked, receive, send)

    async def _answer(self, question: str, asked: dict[str, Any], receive: Receive, send: Send) -> None:
        if question in self.statuses:
            await _json(send, *self.statuses[question])
        elif not asked["stream"]:
            whole = self.wholes.get(question, {"role": "assistant", "content": "one two three"})
            if whole == "hang":
                await self._wait(question, receive)
            elif whole == "cut":
                _transport(receive).abort()
            elif isinstance(whole, str):
                await _send(send, 200, whole.encode(), {"content-type": "text/html"})
            else:
                choice = whole if "text" in whole else {"message": whole}
                choice = {"index": 0, "finish_reason": "stop", **choice}
                await _json(send, 200, {"object": "chat.completion", "choices": [choice], "usage": USAGE})
        else:
            usual = self.streams.get(question, words("one ", "two ", "three"))
            await self._stream(question, self.first.pop(question, usual), receive, send)

    async def _stream(self, question: str, pieces: list[Any], receive: Receive, send: Send) -> None:
        if pieces[0] in ("cut", "hang"):
            _transport(receive).abort() if pieces[0] == "cut" else await self._wait(question, receive)
            return
        await send(_head(200, {"content-type": "text/event-stream"}))
        for piece in pieces:
            if piece == "cut":
                await asyncio.sleep(0.05)  # what was written is to arrive
                _transport(receive).abort()
                return
            if piece == "hang":
                await self._wait(question, receive)
                return
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            line = piece if isinstance(piece, str) else json.dumps(piece)
            await send({"type": "http.response.body", "body": f"data: {line}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _wait(self, question: str, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.append(question)


def _transport(receive: Receive) -> Any:
    return receive.__self__.transport  # type: ignore[attr-defined]


def _head(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await send(_head(status, {"content-length": str(len(body)), **headers}))
    await send({"type": "http.response.body", "body": body})


async def _json(send: Send, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
    await _send(send, status, json.dumps(content).encode(), {"content-type": "application/json", **(headers or {})})


@contextmanager
def running() -> Iterator[Server]:
    """Run one on a free port."""
    server = Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()
