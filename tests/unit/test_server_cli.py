"""`chancellor serve` as a user starts it, as far as it comes without an engine."""

import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.served import Served
from tests.unit.test_cli import fails, run


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--port", "99999"), "port"),
        (("--preload", "nobody"), "nobody"),
        (("--api-key-file", "/nowhere/keys"), "keys"),
        (("--host", "256.1.1.1"), "256.1.1.1"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], word: str) -> None:
    preload = () if "--preload" in arguments else ("--preload", "none")
    port = () if "--port" in arguments else ("--port", "0")
    fails(run("serve", *port, *preload, *arguments), word)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(run("serve", "--port", str(port), "--preload", "none"), f"127.0.0.1:{port}", "--port")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_from_the_moment_it_says_where(tmp_path: Path, ending: signal.Signals) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with Served("--preload", "none", "--api-key-file", str(keys), CHANCELLOR_SERVE_API_KEYS="other") as server:
        url = server.url
        assert httpx.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
        assert httpx.get(f"{url}/ready").status_code in (200, 503)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for key in ("secret", "other"):
            answer = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}", "host": "any.example"})
            assert answer.json()["data"][0]["id"] == "chancellor"
        assert "server" not in answer.headers
        assert server.end(ending) == 0
    assert any("Ready: models start with their first request" in line for line in server.lines)
    lines: list[dict[str, Any]] = [line for line in server.logged() if line.get("path") == "/v1/models"]
    assert [line["status"] for line in lines] == [401, 200, 200]
    assert len(server.logged()) == len(server.lines)  # nothing but JSON
    assert "secret" not in "".join(server.lines)
    assert not any("Traceback" in line for line in server.lines), server.errors()


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with Served("--preload", "none", "--host", "::1") as server:
        assert "[::1]" in server.url
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_its_help_names_every_option() -> None:
    made = run("serve", "--help")
    assert made.returncode == 0
    words = ("--host", "--port", "--preload", "--api-key-file", "--allowed-host", "--drain", "--drain-delay")
    for word in (*words, "--log-prompts"):
        assert word in made.stdout
