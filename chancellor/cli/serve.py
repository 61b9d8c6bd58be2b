"""`chancellor serve`: the OpenAI-compatible endpoint. Its log goes to stderr, a line of JSON for each request."""

import logging
import os
from pathlib import Path
from typing import Any

from chancellor.cli.terminal import Terminal, terminal
from chancellor.engines.host import starts_left
from chancellor.server import ServeOptions
from chancellor.server.readiness import Readiness
from chancellor.server.runner import serve

__all__ = ["run"]

logger = logging.getLogger(__name__)


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
        if starts_left():  # the engines' processes have ended; a thread in the middle of an import cannot
            user.err.file.flush()
            os._exit(0)


def _listening(user: Terminal, url: str) -> None:
    _tell(user, f"Chancellor is at {url}: a page to try it there, the API at {url}/v1. Ctrl-C ends it.", url=url)


def _ready(user: Terminal, readiness: Readiness) -> None:
    started = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in readiness.started.items())
    _tell(user, f"Ready: {started or 'models start with their first request'}.")


def _tell(user: Terminal, message: str, **fields: Any) -> None:
    """Tell a person; a program that reads the log gets one more line of it."""
    if user.err.file.isatty():
        user.err.print(message, markup=False)
    else:
        logger.info(message, extra=fields)
