"""What a server writes to stderr is lines of JSON, whoever logs; a person at a terminal gets text."""

import io
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from chancellor.server.logs import logging_json
from tests.integration.served import PROGRAM


def test_records_of_all_libraries_are_lines_of_json_each_once() -> None:
    stream, chancellor = io.StringIO(), logging.getLogger("chancellor.somewhere")
    before = logging.getLogger("chancellor").level, list(logging.getLogger().handlers)
    with logging_json(stream):
        logging.getLogger("a.library").info("no")
        logging.getLogger("a.library").error("two\nlines")
        logging.getLogger("uvicorn.error").info("started")
        chancellor.info("ours", extra={"model": "light"})
        chancellor.debug("no")
        warnings.warn("take care", stacklevel=1)
        try:
            raise ValueError("why")
        except ValueError:
            chancellor.exception("failed")
    logging.getLogger("a.library").error("after")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == [
        "a.library",
        "uvicorn.error",
        "chancellor.somewhere",
        "py.warnings",
        "chancellor.somewhere",
    ]
    assert [line["level"] for line in lines] == ["ERROR", "INFO", "INFO", "WARNING", "ERROR"]
    assert lines[0]["message"] == "two\nlines"
    assert lines[2]["model"] == "light"
    assert "take care" in lines[3]["message"]
    assert "ValueError: why" in lines[4]["exc_info"]
    assert (logging.getLogger("chancellor").level, logging.getLogger().handlers) == before


def test_a_terminal_gets_text() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *PROGRAM, "--preload", "none"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    ) as process:
        os.close(theirs)
        got, told = b"", False
        with suppress(OSError):  # Linux's way to say that nobody writes any more
            while piece := os.read(ours, 65536):
                got += piece
                if b"Ready: " in got and not told:
                    told = True
                    process.send_signal(signal.SIGTERM)
        os.close(ours)
    assert process.returncode == 0
    texts = [line for line in got.decode().splitlines() if not line.startswith("{")]
    assert texts[0].startswith("Chancellor is at http://127.0.0.1:")
    assert "Ready: models start with their first request." in texts
