"""Downloads, from a hub of our own on loopback."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import ClassVar

import pytest

from chancellor.errors import DownloadError, SourceNotFoundError
from tests.tiny import make_model, write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"

FETCH = """
import sys
from chancellor import progress
from chancellor.checkpoints import fetch, find
from chancellor.errors import ChancellorError
steps = []
try:
    with progress.listening(steps.append):
        found = fetch("org/model", sys.argv[1] if len(sys.argv) > 1 else None)
    print(sorted(file.name for file in found.path.iterdir()))
    print(found.identity, any(step["stage"] == "download" and step["completed"] for step in steps))
    assert find("org/model", sys.argv[1] if len(sys.argv) > 1 else None) == found
except ChancellorError as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub's API that a snapshot needs."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/model/revision/") and path.rsplit("/", 1)[1] in ("v1", "main", COMMIT):
            info = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            self.reply(json.dumps(info).encode())
        elif path.startswith("/api/models/org/model/tree/") and path.rsplit("/", 1)[1] in ("v1", "main", COMMIT):
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": name} for name, body in self.files.items()
            ]
            self.reply(json.dumps(entries).encode())
        elif path.startswith("/api/models/org/model/"):
            self.reply(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/org/model/resolve/{COMMIT}/") and path.rsplit("/", 1)[1] in self.files:
            name = path.rsplit("/", 1)[1]
            self.reply(self.files[name], 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    write_safetensors(tmp_path / "weights", {"a": [256, 256]})
    Hub.files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": (tmp_path / "weights").read_bytes(),
        "pytorch_model.bin": b"never fetched",
        "modeling_evil.py": b"never fetched",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(
    tmp_path: Path, endpoint: str, *arguments: str, offline: bool = False, script: str = FETCH
) -> CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    return run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_download_then_cache(tmp_path: Path, hub: str) -> None:
    first = fetch(tmp_path, hub, "v1")
    assert first.stdout.splitlines() == [
        "['config.json', 'model.safetensors']",
        f"hub:org/model@{COMMIT} True",
    ], first.stderr
    assert first.stderr == ""  # progress goes to listeners, not over the terminal
    Hub.files = {}  # whatever the hub says now, the pinned commit is on this machine
    again = fetch(tmp_path, hub, COMMIT, offline=True)
    assert f"hub:org/model@{COMMIT}" in again.stdout


def test_weights_that_are_not_wanted_are_not_missed(tmp_path: Path, hub: str) -> None:
    Hub.files = {**Hub.files, "model.Q4.gguf": b"never fetched"}
    for offline in (False, True):
        made = fetch(tmp_path, hub, "v1", offline=offline)
        names = "['config.json', 'model.safetensors']"
        assert made.stdout.splitlines()[:1] == [names], made.stdout + made.stderr
        assert f"hub:org/model@{COMMIT}" in made.stdout


def test_offline_says_so_and_what_to_do(tmp_path: Path, hub: str) -> None:
    made = fetch(tmp_path, hub, offline=True)
    assert made.stdout.startswith(DownloadError.__name__), made.stdout + made.stderr
    assert "local folder" in made.stdout


def test_no_network(tmp_path: Path) -> None:
    made = fetch(tmp_path, "http://127.0.0.1:9")
    assert made.stdout.startswith(DownloadError.__name__), made.stdout + made.stderr


def test_a_repository_of_many_ggufs_is_not_downloaded_whole(tmp_path: Path, hub: str) -> None:
    Hub.files = {"m.Q4.gguf": b"GGUF", "m.Q8.gguf": b"GGUF"}
    made = fetch(tmp_path, hub, "v1")
    assert made.stdout.startswith(SourceNotFoundError.__name__), made.stdout + made.stderr
    assert "m.Q4.gguf, m.Q8.gguf" in made.stdout


def test_unknown_revision(tmp_path: Path, hub: str) -> None:
    made = fetch(tmp_path, hub, "v9")
    assert made.stdout.startswith(SourceNotFoundError.__name__), made.stdout + made.stderr
    assert "'v9'" in made.stdout


BUDGET = """
import sys
from pathlib import Path
from chancellor import ModelSpec, progress
from chancellor.engines import EnginePool
from chancellor.engines.room import Room
from chancellor.memory import Device, Ledger
from tests.faulty import FaultyEngine, request
steps = []
budget = 3 * 2**30
room = Room(Ledger(Path(sys.argv[1])), lambda: [Device("cpu", budget, budget, budget)])
pool = EnginePool(FaultyEngine, room=room)
with progress.listening(steps.append):
    list(pool.generate(ModelSpec(name="m", source="org/model", trinity=99), request()))
(resident,) = pool._residents.ready()
print([step["stage"] for step in steps][-1], any(step["stage"] == "download" for step in steps))
print(FaultyEngine.starts[0].engine.kv_cache_gib, 2**30 < resident.takes["cpu"] <= budget)
pool.close()
"""


def test_the_budget_holds_for_the_first_start_of_a_model_from_the_hub(tmp_path: Path, hub: str) -> None:
    model = make_model(tmp_path / "model")
    Hub.files = {file.name: file.read_bytes() for file in model.iterdir()}
    made = fetch(tmp_path, hub, str(tmp_path / "memory.json"), script=BUDGET)
    assert made.stdout.splitlines() == ["ready True", "1.0 True"], made.stderr
