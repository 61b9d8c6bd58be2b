"""Logs of engines: one a process, tidied without taking a log from a process that still writes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chancellor.engines import logs
from chancellor.settings import Settings


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setattr(logs, "settings", lambda: Settings(log_dir=folder))
    monkeypatch.setattr(logs, "_path", logs._path.__wrapped__)
    return folder


def test_old_logs_go_and_logs_of_running_processes_stay(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for second in range(30):
        (folder / f"engine-20200102-0000{second:02}-{ended.pid}.log").touch()
    running = folder / f"engine-20200101-000000-{os.getpid()}.log"
    running.touch()
    log = logs.log_file()
    assert log.exists()
    assert running.exists()
    kept = sorted(path.name for path in folder.glob("engine-20200102-*"))
    assert kept == [f"engine-20200102-0000{second:02}-{ended.pid}.log" for second in range(10, 30)]


def test_a_log_that_was_cleaned_away_is_made_again(folder: Path) -> None:
    logs.log_file().unlink()
    folder.rmdir()
    assert logs.log_file().exists()


def test_what_libraries_say_goes_into_the_file_for_a_while(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("library")
    library.addHandler(caplog.handler)
    before = list(library.handlers), library.propagate
    try:
        with logs.in_file("library", "other"):
            logging.getLogger("library.part").warning("no such kernel")
        assert caplog.messages == []
        assert "WARNING" in logs.log_file().read_text()
        assert "[library.part] no such kernel" in logs.log_file().read_text()
        assert (library.handlers, library.propagate) == before
        library.warning("of the user's own")
        assert "of the user's own" in caplog.messages
    finally:
        library.removeHandler(caplog.handler)
    assert "own" not in logs.log_file().read_text()


def test_what_is_configured_meanwhile_stays(folder: Path) -> None:
    assert folder.exists()
    library, theirs = logging.getLogger("library"), logging.NullHandler()
    library.addHandler(before := logging.NullHandler())
    try:
        with logs.in_file("library"):
            for handler in list(library.handlers):  # as dictConfig does
                library.removeHandler(handler)
            library.addHandler(theirs)
            library.propagate = False
        assert (library.handlers, library.propagate) == ([theirs], False)
        with logs.in_file("library"):
            library.propagate = True
            library.addHandler(before)
        assert (library.handlers, library.propagate) == ([before, theirs], True)
    finally:
        library.removeHandler(before)
        library.removeHandler(theirs)
        library.propagate = True


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
        "OSError: [Errno 12] Cannot allocate memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "FATAL ERROR: OUT OF MEMORY (src/tcp.cpp:12)",
        "libgomp: Out of memory allocating 4096 bytes",
        "dnnl_verbose: out_of_memory",
        "ImportError: libx.so: failed to map segment from shared object: Cannot allocate memory",
    ],
)
def test_what_says_that_memory_was_too_little(folder: Path, line: str) -> None:
    log = logs.log_file()
    log.write_text("INFO a start\n")
    before = log.stat().st_size
    assert logs.shortage_in(log, 0) is None
    log.write_text(f"INFO a start\nERROR {line}\n")
    found = logs.shortage_in(log, before)
    assert found is not None
    assert found in line


@pytest.mark.parametrize(
    "line",
    [
        "libgomp: Invalid value for environment variable OMP_NUM_THREADS",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "ImportError: libx.so: failed to map segment from shared object: Operation not permitted",
    ],
)
def test_what_says_something_else(folder: Path, line: str) -> None:
    log = logs.log_file()
    log.write_text(f"ERROR {line}\n")
    assert logs.shortage_in(log, 0) is None
