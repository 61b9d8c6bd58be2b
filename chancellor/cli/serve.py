"""`chancellor serve`: the OpenAI-compatible endpoint. Its log goes to stderr, a line of JSON for each request."""

from pathlib import Path
from typing import Any

from chancellor.cli.terminal import Terminal, terminal
from chancellor.server import ServeOptions
from chancellor.server.readiness import Readiness
from chancellor.server.runner import serve

__all__ = ["run"]


def run(config: Path | None, given: dict[str, Any]) -> None:
    """Serve until it is told to stop."""
    options = ServeOptions(**{name: value for name, value in given.items() if value not in (None, [])})
    with terminal() as user:
        serve(
            config,
            options,
            log=user.err.file,
            on_listening=lambda url: _listening(user, url),
            on_ready=lambda readiness: _ready(user, readiness),
        )


def _listening(user: Terminal, url: str) -> None:
    user.err.print(f"Chancellor is at [bold]{url}[/]: a page to try it there, the API at {url}/v1. Ctrl-C ends it.")


def _ready(user: Terminal, readiness: Readiness) -> None:
    started = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in readiness.started.items())
    user.err.print(f"Ready: {started or 'models start with their first request'}.")
