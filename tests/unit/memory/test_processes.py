import subprocess
import sys

import psutil
import pytest

from chancellor import gpus
from chancellor.memory import measure
from tests.entries import GIB, MIB

HOLDER = """
import mmap, os, sys, time
shared = mmap.mmap(-1, 64 << 20)
shared.write(b"x" * (64 << 20))
if os.fork() == 0:
    shared[0], shared.seek(0), shared.read()
    print("ready", flush=True)
time.sleep(60)
"""


def test_memory_that_processes_share_counts_once() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            held = measure([process.pid], "cpu")
            assert held is not None
            assert 64 <= held / MIB < 110  # and not 128
            children = [child.pid for child in psutil.Process(process.pid).children()]
            assert measure([process.pid, *children, process.pid], "cpu") == pytest.approx(held, rel=0.05)
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
    assert measure([process.pid], "cpu") is None
    assert measure([], "cpu") is None


def test_without_proportional_sizes_resident_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    own = psutil.Process()
    assert measure([own.pid], "cpu") == pytest.approx(
        sum(one.memory_info().rss for one in [own, *own.children(recursive=True)]), rel=0.1
    )


def test_gpu_memory_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = psutil.Process().pid
    held = {0: {pid: 5 * GIB, 1: GIB}, 1: {}}
    monkeypatch.setattr(gpus, "process_memory", lambda index: held[index])
    assert measure([pid], "cuda:0") == 5 * GIB
    assert measure([pid], "cuda:1") is None  # in another pid namespace, the driver knows nobody of ours
