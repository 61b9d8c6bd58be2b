"""A process of its own for each fault, as a user's program would be: real engines, and what is left afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HEAD = """
import asyncio, json, os, signal, sys, threading, time
import psutil
from chancellor import Catalog, ChatVLLM, ModelSpec, EngineOptions, errors
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.engines.ladder import Ladder
from chancellor.fallbacks import FallbackOptions

def spec(name, source, **engine):
    options = {{"dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.25, **engine}}
    return ModelSpec(name=name, source=source, trinity=96, engine=EngineOptions(**options))

def request(text="What is two plus two?", **options):
    options = {{"max_tokens": 200, "temperature": 0, "stream": True, "retries": 1, "ignore_eos": True, **options}}
    return GenerationRequest([{{"role": "user", "content": text}}], **options)

def engines():
    return [one for one in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]

async def text(stream):
    return "".join([delta.text async for delta in stream])

pool = EnginePool()
model = spec("tiny", {model!r})
found = {{}}
"""
TAIL = """
pool.close()
left = [one.pid for one in engines()]
found["left"] = left
print("FOUND " + json.dumps(found), flush=True)
"""


def run(body: str, model: Path, *, timeout_s: float = 240, **environment: str) -> dict[str, Any]:
    """Run the body between head and tail; return what it put into `found`.

    Nothing of it may be left: no process, no shared memory, no socket or other temporary file.
    """
    script = HEAD.format(model=str(model)) + textwrap.dedent(body) + TAIL
    before = shared_memory()
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as room,
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": room, **environment},
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            output, errors = process.communicate()
            raise AssertionError(f"It hung.\n{output[-2000:]}\n{errors[-4000:]}") from None
        # What torch leaves there of a killed engine, and keeps for the next one.
        kept = ("vllm_dist_", "torchinductor_")
        files = [file for file in Path(room).iterdir() if not file.name.startswith(kept)]
    lines = [line for line in output.splitlines() if line.startswith("FOUND ")]
    assert lines, f"exit code {process.returncode}\n{output[-2000:]}\n{errors[-4000:]}"
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    assert found["left"] == []
    assert process.returncode == 0, errors[-4000:]
    assert files == [], files
    until = time.monotonic() + 10  # multiprocessing's tracker cleans up after the program has ended
    while (forgotten := shared_memory() - before - mapped()) and time.monotonic() < until:
        time.sleep(0.1)
    assert forgotten == set(), forgotten
    return found


def shared_memory() -> set[Path]:
    """Return the segments and semaphores that there are: they outlive their processes."""
    return {file for file in Path("/dev/shm").iterdir() if file.name.startswith(("psm_", "sem."))}


def mapped() -> set[Path]:
    """Return those of them that some process uses: other programs have engines as well."""
    found: set[Path] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
            found |= {Path(line.split()[5]) for line in lines if " /dev/shm/" in line}
    return found
