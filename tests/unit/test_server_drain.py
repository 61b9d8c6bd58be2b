"""From SIGTERM to the end: the real runner in a process of its own, with time for balancers to notice."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.served import Served, wait_until
from tests.unit.test_cli import catalog
from tests.unit.test_server_end import CHAT, PROGRAM, ask, ended

BLOCKING = """
import os, time
open(os.environ["BEGUN"], "w").close()
time.sleep(3600)
"""


@pytest.fixture
def delay() -> str:
    return "600"


@pytest.fixture
def server(delay: str) -> Iterator[Served]:
    with Served("30", program=("-c", PROGRAM), CHANCELLOR_SERVE_DRAIN_DELAY_S=delay) as server:
        yield server


def drains(server: Served) -> bool:
    answer = httpx.get(f"{server.url}/ready")
    return (answer.status_code, answer.json()["status"]) == (503, "draining")


def test_requests_are_taken_until_balancers_have_noticed(server: Served) -> None:
    with httpx.Client(timeout=60) as kept:
        assert "connection" not in kept.get(f"{server.url}/health").headers
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: drains(server), 60)
        answer = kept.send(ask(server, "one two", stream=False))  # on the connection that was open before
        assert answer.json()["choices"][0]["message"]["content"] == "light says: one two"
        assert answer.headers["connection"] == "close"  # the next one goes to another server
        assert kept.send(ask(server, "one two")).text.endswith("data: [DONE]\n\n")  # on a new one
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.process.poll() is None
        assert server.end(signal.SIGTERM) == 0  # the second one
    ended(server)
    assert [line["status"] for line in server.logged() if line.get("path") == CHAT] == [200, 200]


@pytest.mark.parametrize("delay", ["1"])
def test_the_delay_ends_by_itself_and_then_no_connection_is_taken(server: Served) -> None:
    with httpx.Client(timeout=60) as client:
        lines = client.send(ask(server, " ".join(["word"] * 8)), stream=True).iter_lines()
        assert next(lines)
        server.process.send_signal(signal.SIGTERM)

        def closed() -> bool:
            try:
                return not drains(server)
            except httpx.TransportError:
                return True

        wait_until(closed, 60)
        assert list(filter(None, lines))[-1] == "data: [DONE]"
    assert server.process.wait(60) == 0
    server.end()
    ended(server)


def test_a_start_that_cannot_be_interrupted_does_not_hold_up_the_end(tmp_path: Path, tiny_model: Path) -> None:
    """As the import of vLLM, which takes half a minute on a cold machine; here it never ends."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(BLOCKING)
    path = catalog(tmp_path, f'name = "tiny"\nsource = "{tiny_model}"\ntrinity = 99')
    begun = tmp_path / "begun"
    environment = {"PYTHONPATH": str(tmp_path), "BEGUN": str(begun)}
    with Served("--config", path, "--preload", "tiny", **environment) as server:
        wait_until(begun.exists, 60)
        assert httpx.get(f"{server.url}/ready", timeout=60).json()["status"] == "starting"
        assert server.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in server.lines), server.errors()
    assert not any("Ready" in line for line in server.lines)
