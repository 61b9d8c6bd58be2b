"""Fixtures for all tests: nothing is read from, or written to, the user's own folders."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chancellor.settings import settings
from tests.fakes import FakeEngine

os.environ["HF_HUB_OFFLINE"] = "1"
# A shell's background job ignores it, and so would the programs that tests start and send a Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep caches and logs of this run in a folder of its own; subprocesses find it in the environment."""
    root = tmp_path_factory.mktemp("chancellor")
    os.environ["CHANCELLOR_CACHE_DIR"] = str(root / "cache")
    os.environ["CHANCELLOR_LOG_DIR"] = str(root / "log")
    os.environ.pop("CHANCELLOR_CONFIG", None)
    settings.cache_clear()
    yield root
    settings.cache_clear()


@pytest.fixture
def fake_engine() -> Iterator[type[FakeEngine]]:
    """The fake engine with its counters at zero."""
    FakeEngine.reset()
    yield FakeEngine
    FakeEngine.reset()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.4 M parameters with random weights, in bfloat16."""
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")
