"""Logs of engines: one a process, tidied without taking a log from a process that still writes."""

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
