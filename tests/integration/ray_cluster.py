"""A Ray of its own with the endpoint, in another process, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.integration.ports import free_port

LIMIT_S = 400.0
_ENGINES, _ROUTER = "ray::ServeReplica:default:Engines", "ray::ServeReplica:default:Router"


class Cluster:
    """Ray, `serve run`, and what runs below them. Leaving it ends all of it.

    Args:
        folder: Ray's files.
        arguments: of `serve run`.
        environment: beside this process's.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.port, self._output = free_port(), folder / "output.txt"
        # Whatever goes to other machines meets this proxy, which only waits.
        self._proxy = socket.create_server(("127.0.0.1", 0))
        self._proxy.setblocking(False)
        proxy = f"http://127.0.0.1:{self._proxy.getsockname()[1]}"
        # Ray keeps a token in the user's home, and where it does not find this file there, asks 169.254.169.254 which
        # cloud it is in.
        (home := folder / "home").mkdir()
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n", encoding="utf-8")
        quiet = {
            "HOME": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # this machine may be busy with other things
            "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.ray_program", str(folder), str(self.port), *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **quiet, **environment},
            )
        self._tree = psutil.Process(self.process.pid)
        self.client = httpx.Client(base_url=self.url, timeout=LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        left = self.below()
        self.process.send_signal(signal.SIGTERM)
        alive = psutil.wait_procs([self._tree, *left], timeout=120)[1]
        for process in alive:
            process.kill()
        self.process.wait(timeout=60)
        self.client.close()
        try:
            self._proxy.accept()
        except BlockingIOError:
            assert not alive, f"Left running: {alive}"
        else:
            raise AssertionError("Ray has tried to reach another machine.")
        finally:
            self._proxy.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def below(self) -> list[psutil.Process]:
        return self._tree.children(recursive=True) if self._tree.is_running() else []

    def replicas(self) -> dict[int, psutil.Process]:
        """Return the processes with engines, by their ids."""
        return {one.pid: one for one in self.below() if title(one).startswith(_ENGINES)}

    def running(self) -> dict[str, float]:
        """Return how many requests each replica has under way, as the endpoint's metrics say."""
        found = [one for one in self.samples() if "replica" in one.labels]
        under_way = {
            one.labels["replica"]: one.value for one in found if one.name == "chancellor_http_requests_running"
        }
        return {one.labels["replica"]: 0.0 for one in found} | under_way  # which it counts from its first one on

    def samples(self, name: str = "") -> list[Sample]:
        text = self.client.get("/metrics").raise_for_status().text
        families = text_string_to_metric_families(text)
        return [one for family in families for one in family.samples if one.name == (name or one.name)]

    def wait_until(self, holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.3)

    def ready(self, replicas: int) -> "Cluster":
        """Wait until so many replicas answer."""

        def answer() -> bool:
            try:
                return self.client.get("/health").status_code == 200 and len(self.running()) == replicas
            except httpx.HTTPError:
                return False

        self.wait_until(answer)
        return self

    def delete(self) -> None:
        """Have Ray Serve end the application."""
        assert self.process.stdin is not None
        self.process.stdin.write("delete\n")
        self.process.stdin.flush()


def title(process: psutil.Process) -> str:
    """Return how a process is called; "" if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
