"""What callers do to connections: on a real server, byte by byte."""

import json
import logging
import socket
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chancellor.engines import EnginePool
from tests.fakes import FakeEngine
from tests.serving import QUESTION, Server, app_of, events, head, read_to_end, until

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "light", "messages": QUESTION}


def order(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": "light", "messages": [{"role": "user", "content": word}], **fields}


@pytest.fixture
def quick(serving_pool: EnginePool) -> Iterator[Server]:
    """A server with short limits."""
    options = {"body_timeout_s": 1.0, "max_body_mib": 0.05, "ping_s": 0.2, "timeout_s": 2.0}
    with Server(app_of(serving_pool, **options)) as server:
        yield server


def answers(server: Server) -> bool:
    return httpx.post(f"{server.url}{CHAT}", json=BODY, timeout=30).status_code == 200


def hang_up(connection: socket.socket, *, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def statuses(server: Server) -> dict[str, float]:
    """Return how many requests for answers ended with which status."""
    found = {}
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("chancellor_http_requests_total{") and f'route="{CHAT}"' in line:
            found[line.split('status="')[1][:3]] = float(line.split()[-1])
    return found


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_caller_who_hangs_up_before_the_first_token(server: Server, stream: bool, reset: bool, n: int) -> None:
    connection = server.send(order("wait", stream=stream, n=n))
    until(lambda: len(FakeEngine.requests) == n)
    hang_up(connection, reset=reset)
    until(lambda: FakeEngine.aborted == ["wait"] * n)
    assert answers(server)
    until(lambda: statuses(server) == {"499": 1.0, "200": 1.0})


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_caller_who_hangs_up_in_a_stream(server: Server, reset: bool, n: int) -> None:
    connection = server.send(order("endless", stream=True, n=n))
    got = b""
    while b"It begins" not in got:
        got += connection.recv(65536)
    hang_up(connection, reset=reset)
    until(lambda: FakeEngine.aborted == ["endless"] * n)
    assert answers(server)


def test_a_caller_who_hangs_up_is_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "chancellor.server.requests"):
        for stream in (False, True):
            FakeEngine.aborted.clear()
            connection = server.send(order("endless" if stream else "wait", stream=stream))
            if stream:
                assert b"200 OK" in connection.recv(65536)
            else:
                until(lambda: FakeEngine.requests)
            connection.close()
            until(lambda: FakeEngine.aborted)
        until(lambda: len([one for one in caplog.records if one.message == "request"]) == 2)
    plain, stream_ = (record.__dict__ for record in caplog.records if record.message == "request")
    assert (plain["status"], plain["model"]) == (499, "light")
    assert (stream_["status"], stream_["error"]) == (200, "cancelled")


def test_a_half_closed_connection_counts_as_hung_up(server: Server) -> None:
    connection = server.send(order("wait"))
    until(lambda: FakeEngine.requests)
    connection.shutdown(socket.SHUT_WR)
    until(lambda: FakeEngine.aborted == ["wait"])
    assert read_to_end(connection) == b""
    assert answers(server)


def test_a_caller_who_hangs_up_in_the_middle_of_the_body(server: Server) -> None:
    connection = server.connect()
    connection.sendall(head(CHAT, 1000) + b'{"model"')
    connection.close()
    until(lambda: statuses(server) == {} and '499"' in httpx.get(f"{server.url}/metrics").text)
    assert FakeEngine.requests == []
    assert answers(server)


def test_a_body_that_comes_too_slowly(quick: Server) -> None:
    connection = quick.connect()
    connection.sendall(head(CHAT, 1000) + b'{"model"')
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "slow_request"
    assert b"connection: close" in answer.lower()
    assert answers(quick)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(quick: Server, announced: bool) -> None:
    connection = quick.connect()
    piece = b"x" * 0x4000
    connection.sendall(head(CHAT, 10_000_000 if announced else None))
    if not announced:
        for _ in range(4):  # the last is too much
            connection.sendall(b"4000\r\n" + piece + b"\r\n")
    answer = read_to_end(connection)  # without another byte
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert answers(quick)


def test_a_chunked_body_within_the_limit(quick: Server) -> None:
    content, connection = json.dumps(BODY).encode(), quick.connect()
    connection.sendall(head(CHAT, None, "connection: close"))
    for byte in (content[:1], content[1:20], content[20:]):
        connection.sendall(f"{len(byte):x}\r\n".encode() + byte + b"\r\n")
    connection.sendall(b"0\r\n\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")


def test_one_connection_for_several_requests_also_at_once(server: Server) -> None:
    content, connection = json.dumps(BODY).encode(), server.connect()
    connection.sendall(
        (head(CHAT, len(content)) + content) * 2 + head(CHAT, len(content), "connection: close") + content
    )
    assert read_to_end(connection).count(b"light says: hello there") == 3


def test_a_body_is_asked_for(server: Server) -> None:
    content, connection = json.dumps(BODY).encode(), server.connect()
    connection.sendall(head(CHAT, len(content), "expect: 100-continue", "connection: close"))
    assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
    connection.sendall(content)
    assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")


def test_a_stream_that_is_silent_is_kept_alive(serving_pool: EnginePool) -> None:
    FakeEngine.delta_s = 0.3
    with Server(app_of(serving_pool, ping_s=0.1)) as server:
        answer = httpx.post(f"{server.url}{CHAT}", json={**BODY, "stream": True}, timeout=30)
    assert ": ping" in answer.text
    assert events(answer.text)[-1] == "[DONE]"


def test_a_caller_who_does_not_read_is_left(quick: Server) -> None:
    connection = quick.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    content = json.dumps(order("endless", stream=True)).encode()
    connection.sendall(head(CHAT, len(content)) + content)
    until(lambda: FakeEngine.aborted == ["endless"])
    until(lambda: "chancellor_http_requests_running 1.0" in httpx.get(f"{quick.url}/metrics").text)  # this one
    connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET //health HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /%ff%00%0d%0aset-cookie:x HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
    ],
)
def test_requests_that_are_none(server: Server, request_: bytes) -> None:
    connection = server.connect()
    connection.sendall(request_)
    answer = connection.recv(65536)
    status = int(answer.split()[1])
    assert 400 <= status < 500
    assert b"set-cookie" not in answer.split(b"\r\n\r\n")[0].lower()
    connection.close()
    assert answers(server)
