"""How a server ends: the real runner in a process of its own, with engines that do as they are told."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.integration.served import Served

PROGRAM = """
import signal
import sys
from chancellor.cli.app import _terminate
from chancellor.engines import EnginePool
from chancellor.server import ServeOptions
from chancellor.server.runner import serve
from tests.fakes import FakeEngine, catalog
from tests.serving import Scripted

signal.signal(signal.SIGTERM, _terminate)
FakeEngine.delta_s = 0.4
serve(
    catalog(),
    ServeOptions(port=0, preload=("none",), drain_s=float(sys.argv[1])),
    log=sys.stderr,
    on_listening=lambda url: print(f"Chancellor is at {url}: ", file=sys.stderr, flush=True),
    pool=EnginePool(Scripted),
)
print("closed:", *FakeEngine.closed, "aborted:", *FakeEngine.aborted, file=sys.stderr)
"""
CHAT = "/v1/chat/completions"


@pytest.fixture
def drain() -> str:
    return "30"


@pytest.fixture
def server(drain: str) -> Iterator[Served]:
    with Served(drain, program=("-c", PROGRAM)) as server:
        yield server


def ask(server: Served, word: str, *, stream: bool = True) -> httpx.Request:
    body = {"model": "light", "messages": [{"role": "user", "content": word}], "stream": stream}
    return httpx.Request("POST", f"{server.url}{CHAT}", json=body)


def ended(server: Served, *words: str) -> None:
    """It has ended well, has closed its engine, and has no more to tell than that."""
    assert not any("Traceback" in line for line in server.lines), server.errors()
    last = server.lines[-1]
    assert last.startswith("closed: light aborted:"), server.errors()
    assert last.removeprefix("closed: light aborted:").split() == list(words)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_under_way_is_finished(server: Served, ending: signal.Signals, stream: bool) -> None:
    request = ask(server, "one two three", stream=stream)
    with httpx.Client(timeout=60) as client:
        if stream:
            answer = client.send(request, stream=True)
            lines = answer.iter_lines()
            assert next(lines)
            server.process.send_signal(ending)
            assert list(filter(None, lines))[-1] == "data: [DONE]"
        else:
            with ThreadPoolExecutor(1) as threads:
                asked = threads.submit(client.send, request)
                while not asked.done() and server.metric("chancellor_http_requests_running") != {"": 2.0}:
                    pass  # until there are that and this
                server.process.send_signal(ending)
                assert asked.result().json()["choices"][0]["message"]["content"] == "light says: one two three"
    assert server.process.wait(60) == 0
    server.end()
    ended(server)


@pytest.mark.parametrize("endings", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_waits_for_nothing(server: Served, endings: tuple[signal.Signals, ...]) -> None:
    with httpx.Client(timeout=60) as client:
        lines = client.send(ask(server, "endless"), stream=True).iter_lines()
        assert next(lines)
        assert server.end(*endings) == 0
        with pytest.raises(httpx.TransportError):
            list(lines)
    ended(server, "endless")
    assert not any("exceeded" in line for line in server.lines)  # the time to drain was not over
    (line,) = [line for line in server.logged() if line.get("path") == CHAT]
    assert line["error"] == "cancelled"


@pytest.mark.parametrize("drain", ["1"])
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_waited_for_longer_than_it_may_take(server: Served, stream: bool) -> None:
    with httpx.Client(timeout=60) as client:
        if stream:
            lines = client.send(ask(server, "endless"), stream=True).iter_lines()
            assert next(lines)
            assert server.end(signal.SIGTERM) == 0
            with pytest.raises(httpx.TransportError):
                list(lines)
        else:
            with ThreadPoolExecutor(1) as threads:
                asked = threads.submit(client.send, ask(server, "wait", stream=False))
                while server.metric("chancellor_http_requests_running") != {"": 2.0}:
                    pass
                assert server.end(signal.SIGTERM) == 0
                answer = asked.result()
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "shutting_down"
                assert answer.headers["retry-after"] == "1"
    ended(server, "endless" if stream else "wait")


def test_a_head_may_not_have_any_size(server: Served) -> None:
    port = int(server.url.rpartition(":")[2])
    for name in (b"", b"x-short: ", b"x-long: "):  # one line that does not end, and many
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + name)
            piece = b"y" * 8000 + (b"\r\nx-more: " if name == b"x-short: " else b"")
            with suppress(ConnectionError):
                for _ in range(200):
                    connection.sendall(piece)
            got = b""
            with suppress(ConnectionError):
                got = connection.recv(1000)
            assert got.startswith(b"HTTP/1.1 400 ") or not got
    with httpx.Client() as client:  # and one connection for several requests, each with much to say
        for _ in range(4):
            assert client.get(f"{server.url}/health", headers={"x-long": "y" * 40_000}).status_code == 200
