"""Connections on which no request is under way: heads that do not come, and too many of them. Byte by byte."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from chancellor.engines import EnginePool
from tests.fakes import FakeEngine
from tests.serving import QUESTION, Server, app_of, head, read_to_end, until

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "light", "messages": QUESTION}
HALF = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: "
WHOLE = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
SHORT = 0.4


@pytest.fixture
def impatient(serving_pool: EnginePool) -> Iterator[Server]:
    """A server that waits for heads for a moment, and for all else as long as it takes."""
    with Server(app_of(serving_pool, head_timeout_s=SHORT)) as server:
        yield server


@pytest.fixture
def small(serving_pool: EnginePool) -> Iterator[Server]:
    """A server with few connections."""
    with Server(app_of(serving_pool, max_connections=3)) as server:
        yield server


def asked(word: str, **fields: Any) -> bytes:
    content = json.dumps({"model": "light", "messages": [{"role": "user", "content": word}], **fields}).encode()
    return head(CHAT, len(content)) + content


def answered(connection: socket.socket) -> None:
    """Take the whole answer to `WHOLE`."""
    got = b""
    while not got.endswith(b'{"status":"ok"}'):
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    assert got.startswith(b"HTTP/1.1 200 ")


def refused(got: bytes, status: int) -> Any:
    top, _, body = got.partition(b"\r\n\r\n")
    assert top.startswith(f"HTTP/1.1 {status} ".encode()), got
    assert b"connection: close" in top
    return json.loads(body)["error"]


def test_who_sends_nothing_is_left(impatient: Server) -> None:
    assert read_to_end(impatient.connect()) == b""


@pytest.mark.parametrize("sent", [b"G", HALF, b"POST /v1/chat/completions HTTP/1.1\r\n"])
@pytest.mark.parametrize("before", [b"", WHOLE])
def test_half_a_head(impatient: Server, before: bytes, sent: bytes) -> None:
    connection = impatient.connect()
    if before:  # on a connection that is kept
        connection.sendall(before)
        answered(connection)
    connection.sendall(sent)
    assert refused(read_to_end(connection), 408)["code"] == "slow_request"


def test_refusals_are_counted_and_logged(impatient: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chancellor.server.protocol")
    for sent in (HALF, b"nonsense\r\n\r\n", b"nonsense\r\n\r\n"):
        connection = impatient.connect()
        connection.sendall(sent)
        read_to_end(connection)
    counted = [line for line in httpx.get(f"{impatient.url}/metrics").text.splitlines() if "refused_conn" in line]
    assert [line for line in counted if "_total{" in line] == [
        'chancellor_http_refused_connections_total{status="408"} 1.0',
        'chancellor_http_refused_connections_total{status="400"} 2.0',
    ]
    records = [vars(record) for record in caplog.records if record.name == "chancellor.server.protocol"]
    told = [(record["status"], record["client"]) for record in records]
    assert told == [(408, "127.0.0.1"), (400, "127.0.0.1"), (400, "127.0.0.1")]


@pytest.mark.parametrize("before", [b"", WHOLE])
@pytest.mark.parametrize("drops", [b"y", b"\r\n"])
def test_a_head_that_comes_by_drops(impatient: Server, before: bytes, drops: bytes) -> None:
    """Neither bytes of a head nor empty lines before one put the end off."""
    connection = impatient.connect()
    if before:
        connection.sendall(before)
        answered(connection)
    if drops == b"y":
        connection.sendall(HALF)
    connection.settimeout(0.05)
    deadline, got = time.monotonic() + 20, b"?"
    with suppress(ConnectionError):  # what came after its end has it reset
        while got and time.monotonic() < deadline:
            connection.sendall(drops)
            with suppress(TimeoutError):
                got = connection.recv(65536)
    assert time.monotonic() < deadline


def test_an_upgrade_is_a_request_like_others(impatient: Server) -> None:
    connection = impatient.connect()
    for more in (b"connection: upgrade\r\nupgrade: websocket\r\n", b""):
        connection.sendall(WHOLE[:-2] + more + b"\r\n")
        answered(connection)


def test_a_body_may_take_longer(impatient: Server) -> None:
    connection, content = impatient.connect(), json.dumps(BODY).encode()
    connection.sendall(head(CHAT, len(content), "connection: close"))
    for at in range(4):
        time.sleep(SHORT / 2)
        connection.sendall(content[at * 20 : (at + 1) * 20])
    connection.sendall(content[80:])
    assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("behind", [b"", HALF])
def test_an_answer_may_take_longer(impatient: Server, behind: bytes) -> None:
    """Also where half a head waits behind it; that has its own time from the answer's end on."""
    FakeEngine.delta_s = SHORT / 2
    connection = impatient.connect()
    connection.sendall(asked("one two three four", stream=True) + behind)
    got = b""
    while b"[DONE]" not in got:
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    if behind:
        rest = read_to_end(connection)
        assert refused(rest[rest.index(b"HTTP/1.1 ") :], 408)["code"] == "slow_request"


def test_garbage_behind_a_request_does_not_stand_in_its_answer(server: Server) -> None:
    FakeEngine.delta_s = 0.2
    connection = server.connect()
    connection.sendall(asked("one two", stream=True) + b"\x00\x01\x02 garbage\r\n\r\n")
    assert b"Invalid HTTP" not in read_to_end(connection)


def test_garbage_alone_is_answered_like_all_errors(server: Server) -> None:
    connection = server.connect()
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    assert refused(read_to_end(connection), 400)["type"] == "invalid_request_error"


def test_the_connection_that_has_waited_longest_makes_room(small: Server) -> None:
    first, second, third = small.connect(), small.connect(), small.connect()
    for one in (first, second, third):
        one.sendall(WHOLE)
        answered(one)
    first.sendall(WHOLE)  # now the second has waited for longest
    answered(first)
    fourth = small.connect()
    assert read_to_end(second) == b""
    for one in (fourth, first, third):
        one.sendall(WHOLE)
        answered(one)


def test_half_heads_keep_nobody_out(small: Server) -> None:
    for _ in range(10):
        small.connect().sendall(HALF)
    assert httpx.get(f"{small.url}/health").status_code == 200


def test_more_connections_than_may_be_with_a_request_on_each(small: Server) -> None:
    busy = [small.connect() for _ in range(3)]
    for one in busy:
        one.sendall(asked("wait"))
    until(lambda: len(FakeEngine.requests) == 3)
    got = read_to_end(small.connect())
    assert refused(got, 503)["code"] == "too_many_connections"
    assert b"retry-after: 1\r\n" in got
    busy.pop().close()
    until(lambda: len(FakeEngine.aborted) == 1)
    until(lambda: httpx.get(f"{small.url}/health").status_code == 200)
    assert FakeEngine.aborted == ["wait"]


@pytest.mark.parametrize(("soft", "hard", "expected"), [(300, 1000, "744 1000"), (900, 900, "644 900")])
def test_no_more_connections_than_there_can_be_files(soft: int, hard: int, expected: str) -> None:
    """Else engines and logs could open none any more; what is below the hard limit is taken."""
    code = (
        "import resource; from chancellor.server.runner import _connections as most; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(most(4096), resource.getrlimit(resource.RLIMIT_NOFILE)[0], most(10))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == [*expected.split(), "10"]
