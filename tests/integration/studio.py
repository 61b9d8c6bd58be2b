"""LangGraph Studio's server (`langgraph dev`) in a process of its own, for tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from langgraph_sdk import get_sync_client

ROOT = Path(__file__).parents[2]
# Nothing is to be sent anywhere: no traces, no usage figures, no look for a newer version.
QUIET = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGGRAPH_NO_VERSION_CHECK": "true"}
LIMIT_S = 300.0


class Studio:
    """The server over the project's langgraph.json and graphs/, copied: it keeps its threads there, and watches it."""

    def __init__(self, folder: Path, catalog: str) -> None:
        self._output = folder / "server.txt"  # in the watched folder, each line would be a change, and be logged
        self.folder = folder / "project"
        shutil.copytree(ROOT / "graphs", self.folder / "graphs")
        shutil.copy(ROOT / "langgraph.json", self.folder)
        # Whatever goes to other machines in spite of QUIET meets this proxy, which only waits.
        self._proxy = socket.create_server(("127.0.0.1", 0))
        self._proxy.setblocking(False)
        proxy, port = f"http://127.0.0.1:{self._proxy.getsockname()[1]}", free_port()
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))
        }
        proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--n-jobs-per-worker", "16"),
                    *("--port", str(port)),
                ],
                cwd=self.folder,
                env={**inherited, **QUIET, **proxies, "CHANCELLOR_CONFIG": catalog},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.client = get_sync_client(url=f"http://127.0.0.1:{port}", timeout=LIMIT_S)
        self.wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.http.get("/ok")["ok"])
        except httpx.TransportError:
            return False

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def engines(self) -> list[psutil.Process]:
        """Return the engines' first processes. The server is two processes: one watches files, one runs the graph."""
        try:
            servers = psutil.Process(self.process.pid).children()
            return [engine for server in servers for engine in server.children()]
        except psutil.NoSuchProcess:
            return []

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def ask(self, question: str = "What is 2+2?", assistant: str = "chancellor", **context: Any) -> dict[str, Any]:
        """Answer on no thread."""
        asked = {"messages": [{"role": "user", "content": question}]}
        answer = self.client.runs.wait(None, assistant, input=asked, context=context or None)  # type: ignore[arg-type]
        assert isinstance(answer, dict)
        return answer

    def interrupt(self) -> None:
        """Press Ctrl-C: a terminal sends it to the whole group."""
        self.client.close()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(timeout=120)

    def check(self) -> None:
        """See that no code of ours blocked the server's event loop, and that nothing left this machine."""
        assert "BlockingError" not in self.output()
        try:
            self._proxy.accept()
        except BlockingIOError:
            return
        raise AssertionError("The server has tried to reach another machine.")

    def close(self) -> None:
        """End what is left, whatever the test has found."""
        left = self.below() if self.process.poll() is None else []
        for process in left:
            process.kill()
        self.process.kill()
        self.process.wait(timeout=60)
        self._proxy.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
