"""The real endpoint on a free port, in a thread, with fake engines that talk as a test wants; and a line to cut."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar, cast

import uvicorn

from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, EnginePool, EngineStats, GenerationRequest
from chancellor.errors import GenerationError
from chancellor.server import ServeOptions, create_app
from tests.fakes import FakeEngine, catalog

LIMIT_S = 60.0
BAD = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Talker(FakeEngine):
    """Says what a FakeEngine says, delta by delta as `allowed`; some words in the question make it do more."""

    allowed: ClassVar[float] = math.inf
    """How many more deltas may leave."""
    running: ClassVar[int] = 0

    @classmethod
    def reset(cls) -> None:
        super().reset()
        Talker.allowed, Talker.running = math.inf, 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        Talker.running += 1
        try:
            async with aclosing(self._deltas(request)) as deltas:
                while True:
                    while Talker.allowed <= 0:  # noqa: ASYNC110 - another thread allows more
                        await asyncio.sleep(0.01)
                    Talker.allowed -= 1
                    if (delta := await anext(deltas, None)) is None:
                        return
                    yield delta
        finally:
            Talker.running -= 1

    async def _deltas(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        question = str(request.messages[-1]["content"])
        if "think" in question:
            yield Delta("", reasoning=f"Let me think: {BAD}")
        if "much" in question:
            for number in range(5_000):
                yield Delta(f"{number} ")
        said = 0
        async with aclosing(cast("AsyncGenerator[Delta, None]", super().generate(request))) as deltas:
            async for delta in deltas:
                if "break" in question and said == 3:
                    raise GenerationError(f"It broke: {BAD}")
                said += 1
                yield replace(delta, finish_reason="length") if delta.finish_reason and "cut" in question else delta

    def stats(self) -> EngineStats:
        return EngineStats(running=Talker.running, waiting=2, kv_cache_usage=0.25, peak_running=1, output_tokens=7)


def talker(spec: ModelSpec) -> Talker:
    return Talker(spec)


@contextmanager
def served(**options: Any) -> Iterator[str]:
    """Serve the fakes' catalog; yield the address."""
    pool = EnginePool(talker)
    app = create_app(catalog(), ServeOptions(preload=("none",), **options), pool=pool)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="error", timeout_graceful_shutdown=1))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        Talker.allowed = math.inf
        server.should_exit = True
        thread.join(LIMIT_S)
        listener.close()
        pool.close()


class Line:
    """A line to the server that can be cut."""

    def __init__(self, address: str) -> None:
        self._server = address.removeprefix("http://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._server[0], int(self._server[1])))
            self._ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()

    def cut(self) -> None:
        """End all connections as they are."""
        ends, self._ends = self._ends, []
        for end in ends:
            _end(end)

    def close(self) -> None:
        _end(self._listener)
        self._listener.close()
        self.cut()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _end(target)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
