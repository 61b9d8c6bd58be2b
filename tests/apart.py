"""An engine in a process of its own, with a fake at the other end: for what is about processes, and not about vLLM."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from chancellor.catalog import ModelSpec
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.engines.vllm_apart_worker import serve
from tests.fakes import FakeEngine


class Inner(FakeEngine):
    """What runs in the other process."""

    can_sleep = True

    def __init__(self, spec: ModelSpec, report: Any = None) -> None:
        super().__init__(spec)
        self.report = report
        self.calls: list[str] = []

    def tokenizer_source(self) -> tuple[str, str | None]:
        return "/models/m", None

    def facts(self) -> dict[str, float]:
        return {"weights_gib": 1.5}


def work(line: socket.socket, spec: ModelSpec, log: Path) -> None:
    """Stand in for the worker's own."""
    inner: Any = Inner
    inner.start_s = 600.0 if spec.name == "slow" else 0.0
    asyncio.run(serve(line, spec, inner))


class Apart(ApartVLLMEngine):
    """The real one, but for what it serves."""

    def _work(self) -> Any:
        return work
