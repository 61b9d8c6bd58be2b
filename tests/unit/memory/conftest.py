"""GPUs that are not there."""

from typing import Any

import pytest

from chancellor import gpus
from chancellor.memory import device, estimates
from tests.entries import GIB


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(count: int) -> None:
        found = [gpus.Memory(80 * GIB, 79 * GIB)] * count
        monkeypatch.setattr(device, "gpu_memories", lambda: found)
        monkeypatch.setattr(estimates, "gpu_memories", lambda: found)

    return make
