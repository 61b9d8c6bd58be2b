"""What the vLLM engine does around vLLM, without one."""

import asyncio
import subprocess
import sys
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
