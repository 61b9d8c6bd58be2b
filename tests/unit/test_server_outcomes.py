"""How requests have ended, for Prometheus: a stream that breaks has a status of 200 all the same."""

import re
from typing import Any

import httpx
import pytest

from chancellor.engines import EnginePool
from tests.fakes import FakeEngine
from tests.serving import Server, app_of, until

CHAT = "/v1/chat/completions"
SERIES = re.compile(r'chancellor_http_requests_total\{outcome="(\w+)",route="([^"]+)",status="(\d+)"\} (\S+)')


def outcomes(server: Server) -> dict[tuple[str, str], float]:
    """Return how many requests for answers ended with which status and outcome."""
    found = SERIES.findall(httpx.get(f"{server.url}/metrics").text)
    return {(status, outcome): float(count) for outcome, route, status, count in found if route == CHAT}


def order(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": "light", "messages": [{"role": "user", "content": word}], **fields}


@pytest.mark.parametrize(
    ("word", "stream", "expected"),
    [
        ("hello", False, ("200", "ok")),
        ("hello", True, ("200", "ok")),
        ("break", True, ("200", "error")),
        ("crash", True, ("200", "error")),
        ("break", False, ("500", "error")),
        ("boom", True, ("500", "error")),
        ("busy", True, ("429", "error")),
    ],
)
def test_answers_and_errors(server: Server, word: str, stream: bool, expected: tuple[str, str]) -> None:
    httpx.post(f"{server.url}{CHAT}", json=order(word, stream=stream), timeout=30)
    until(lambda: outcomes(server) == {expected: 1.0})


@pytest.mark.parametrize(
    ("word", "stream", "expected"),
    [("wait", False, ("499", "cancelled")), ("endless", True, ("200", "cancelled"))],
)
def test_callers_who_hang_up(server: Server, word: str, stream: bool, expected: tuple[str, str]) -> None:
    connection = server.send(order(word, stream=stream))
    if stream:
        assert b" 200 OK" in connection.recv(65536)
    until(lambda: FakeEngine.requests)
    connection.close()
    until(lambda: outcomes(server) == {expected: 1.0})


def test_a_stream_that_takes_too_long(serving_pool: EnginePool) -> None:
    with Server(app_of(serving_pool, timeout_s=1.0)) as server:
        text = httpx.post(f"{server.url}{CHAT}", json=order("endless", stream=True), timeout=30).text
        assert "timeout" in text
        until(lambda: outcomes(server) == {("200", "error"): 1.0})
