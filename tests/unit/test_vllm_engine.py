"""What the vLLM engine does around vLLM, without one."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
import uuid
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from chancellor import ModelSpec
from chancellor.engines.logs import log_file
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_processes import Processes
from chancellor.errors import EngineStartError, OutOfMemoryError

SPEC = ModelSpec(name="m", source="shape:nano", trinity=99)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB.", OutOfMemoryError),
        ("RuntimeError: no kernel image is available", EngineStartError),
    ],
)
def test_a_warm_up_without_memory_says_so(monkeypatch: pytest.MonkeyPatch, words: str, kind: type[Exception]) -> None:
    engine = VLLMEngine(SPEC)

    def load(*_: object) -> Any:
        return SimpleNamespace(llm=SimpleNamespace(), prepared=None, facts={}, postmortem=PostMortem())

    async def warm_up(_: object) -> None:
        assert engine.stalled() is None
        assert engine._answering == 1  # it is watched
        with log_file().open("a", encoding="utf-8") as log:
            log.write(f"(EngineCore) ERROR {words}\n")
        raise RuntimeError("Engine core died.")

    async def close() -> None:
        engine._llm = None

    monkeypatch.setattr("chancellor.engines.vllm.load", load)
    monkeypatch.setattr(engine, "_warm_up", warm_up)
    monkeypatch.setattr(engine, "close", close)
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(engine.start())
    assert type(caught.value) is kind
    assert engine._answering == 0


def test_a_shutdown_that_fails_leaves_nothing() -> None:
    class Failing:
        def shutdown(self, timeout: float) -> None:
            raise RuntimeError("The engine core is gone.")

    engine = VLLMEngine(SPEC)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        engine._processes._all = [psutil.Process(process.pid)]
        memory = SharedMemory(create=True, size=1)
        segment = Path("/dev/shm", memory.name)
        engine._processes._segments = {segment}
        left: Any = Failing()
        try:
            engine._shut_down(left, patience_s=0.1)
            assert not psutil.pid_exists(process.pid)
            assert not segment.exists()
        finally:
            memory.close()
            process.kill()


class TestSockets:
    """vLLM leaves those of every engine behind."""

    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", "/tmp")  # pytest's own is too long for a socket

    def test_they_go_with_the_engine(self) -> None:
        processes = Processes()
        with processes.starting():
            place = Path(os.environ["VLLM_RPC_BASE_PATH"])
            (place / "a").touch()
        assert "VLLM_RPC_BASE_PATH" not in os.environ
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        processes.end()
        assert not place.exists()

    def test_they_go_when_the_start_fails(self) -> None:
        places = []

        def start() -> None:
            with Processes().starting():
                places.append(Path(os.environ["VLLM_RPC_BASE_PATH"]))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            start()
        assert not places[0].exists()

    def test_a_users_own_place_is_left_alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path))
        processes = Processes()
        with processes.starting():
            assert os.environ["VLLM_RPC_BASE_PATH"] == str(tmp_path)
        processes.end()
        assert tmp_path.exists()

    @pytest.mark.parametrize(("length", "own"), [(50, True), (51, False)])
    def test_a_path_too_long_for_a_socket(self, monkeypatch: pytest.MonkeyPatch, length: int, own: bool) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as room:
            folder = Path(room, "x" * (length - len(room) - 1))
            folder.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            processes = Processes()
            with processes.starting():
                assert ("VLLM_RPC_BASE_PATH" in os.environ) is own
                if own:
                    with socket.socket(socket.AF_UNIX) as bound:
                        bound.bind(f"{os.environ['VLLM_RPC_BASE_PATH']}/{uuid.uuid4()}")
            processes.end()

    def test_where_nothing_can_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
        with Processes().starting():
            assert "VLLM_RPC_BASE_PATH" not in os.environ
