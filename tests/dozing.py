"""Engines in processes of their own that sleep, on a GPU that is a folder: a file for each process that has memory."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, GenerationRequest
from chancellor.engines.room import Room
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.engines.vllm_apart_worker import serve
from chancellor.memory import Device, Estimate
from tests import apart
from tests.entries import GIB

FOLDER = "CHANCELLOR_TESTS_GPU"
"""Environment variable that names it. Beside those files there are the faults: see `fault`."""
WHOLE, REST = 18.0, 1.5
"""GiB that an engine has while it is awake, and while it sleeps."""


def folder() -> Path:
    return Path(os.environ[FOLDER])


def fault(what: str, name: str) -> Path:
    """Return the file in which stands how the model's next sleep, or wake, goes wrong: raise, hang, block, or hold.

    With hold it goes on once the file is gone.
    """
    return folder() / f"{what} {name}"


def begun(what: str, name: str) -> Path:
    """Return the file that is there as soon as the model's sleep, or wake, has begun."""
    return folder() / f"{what} {name} has begun"


class Inner(apart.Inner):
    """What runs in the front end's process. Below it is one that computes, or rather sleeps."""

    def __init__(self, spec: ModelSpec, report: Any = None) -> None:
        super().__init__(spec, report)
        self.core: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.core = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220 - it comes at once
        self._hold(WHOLE)
        await super().start()

    def _hold(self, size: float) -> None:
        if self.core is not None:
            new = folder() / f"{self.core.pid}.new"
            new.write_text(str(size))
            new.replace(folder() / f"{self.core.pid}.gpu")

    def process_ids(self) -> list[int]:
        return [] if self.core is None else [self.core.pid]

    def healthy(self) -> bool:
        return self.alive and self.core is not None and self.core.poll() is None

    def kill(self) -> None:
        self.alive = False
        if self.core is not None:
            self.core.kill()
            self.core.wait()

    def interrupt(self) -> None:
        self.kill()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        tokens = tuple(range(request.max_tokens))
        yield Delta(f"{self.spec.name} answers", tokens, finish_reason="length", output_tokens=len(tokens))

    async def sleep(self) -> None:
        await self._do("sleep")
        self._hold(REST)

    async def wake(self) -> None:
        await self._do("wake")
        self._hold(WHOLE)

    async def _do(self, what: str) -> None:
        own = fault(what, self.spec.name)
        how = own.read_text() if own.exists() else ""
        begun(what, self.spec.name).touch()
        if how == "raise":
            raise RuntimeError("No.")
        if how == "hang":
            await asyncio.Event().wait()
        if how == "block":
            time.sleep(600)  # noqa: ASYNC251 - as vLLM does where a call of CUDA's does not come back
        while how == "hold" and own.exists():  # noqa: ASYNC110 - it is removed in another process
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.kill()


def work(line: socket.socket, spec: ModelSpec, log: Path) -> None:
    """Stand in for the worker's own."""
    inner: Any = Inner
    asyncio.run(serve(line, spec, inner))


class Dozing(ApartVLLMEngine):
    """The real one, but for what it serves."""

    def _work(self) -> Any:
        return work


class Cell(Room):
    """A GPU of 24 GiB: for one that is awake, and one that sleeps."""

    size = 24.0

    def __init__(self) -> None:
        pass

    def expected(self, spec: ModelSpec) -> Estimate:
        parts = {"weights": 8, "kv_cache": 8, "kv_cache_least": 1, "activations": 1, "graphs": 0, "overhead": 1}
        return Estimate(("cuda:0",), **{name: size * GIB for name, size in parts.items()})

    def _read(self) -> list[Device]:
        used = sum(float(file.read_text()) for file in folder().glob("*.gpu") if alive(int(file.stem)))
        if used > self.size:
            raise AssertionError("Out of memory.")
        size = int(self.size * GIB)
        return [Device("cuda:0", size, int((self.size - used) * GIB), size)]

    def took(self, *_: object) -> None:
        return None


def alive(pid: int) -> bool:
    """Return whether there is such a process, and more of it than its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
