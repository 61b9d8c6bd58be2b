"""`chancellor serve` in a process of its own, as a user starts it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

PROGRAM = ("-m", "chancellor.cli", "serve", "--port", "0")
_URL = re.compile(r"Chancellor is at (http://\S+?):? ")


class Served:
    """A server; leaving it ends it, and nothing of it may be left.

    Args:
        arguments: of `chancellor serve`.
        program: another one than that, for Python.
        environment: beside this process's.
    """

    def __init__(self, *arguments: str, program: Sequence[str] = PROGRAM, **environment: str) -> None:
        self.lines: list[str] = []
        self._root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._root,
            env={**os.environ, "COLUMNS": "200", **environment},
        )
        self._tree = psutil.Process(self.process.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.left: list[psutil.Process] = []

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    @property
    def url(self) -> str:
        """Where it is, as it has said itself."""
        found: list[str] = []

        def said() -> bool:
            found.extend(match[1] for line in self.lines if (match := _URL.search(line)))
            return bool(found) or self.process.poll() is not None

        wait_until(said, 180)  # a busy machine imports slowly
        assert found, self.errors()
        return found[0]

    def ready(self) -> "Served":
        """Wait until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.errors()
            return httpx.get(f"{self.url}/ready", timeout=60).status_code == 200

        wait_until(answers, 400)
        return self

    def errors(self) -> str:
        """Return the end of what it has written."""
        return "\n".join(self.lines[-60:])

    def children(self) -> list[psutil.Process]:
        """Return the processes below it."""
        return self._tree.children(recursive=True)

    def metric(self, name: str) -> dict[str, float]:
        """Return a metric's series."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of the log."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def end(self, *signals: signal.Signals, seconds: float = 60) -> int:
        """Send the signals and wait; return the exit code. No process is left, and no error was logged."""
        below = self.children() if self.process.poll() is None else []
        for number, one in enumerate(signals):
            time.sleep(0.5 if number else 0)
            self.process.send_signal(one)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for process in [*below, self._tree]:
                process.kill()
            raise AssertionError(f"It did not end.\n{self.errors()}") from None
        self._reader.join(10)
        _, self.left = psutil.wait_procs(below, timeout=30)
        assert self.left == []
        return code


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    """Wait for what is to become true in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not happen."
        time.sleep(0.1)
