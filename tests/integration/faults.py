"""A process of its own for each fault, as a user's program would be: real engines, and what is left afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HEAD = """
import asyncio, json, os, signal, sys, threading, time
from contextlib import suppress
import psutil
from chancellor import Catalog, ChatVLLM, ModelSpec, EngineOptions, errors
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.engines.ladder import Ladder
from chancellor.fallbacks import FallbackOptions
from chancellor.resources import give_back

def spec(name, source, **engine):
    options = {{"dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.25, **engine}}
    return ModelSpec(name=name, source=source, trinity=96, engine=EngineOptions(**options))

def request(text="What is two plus two?", **options):
    options = {{"max_tokens": 200, "temperature": 0, "stream": True, "retries": 1, "ignore_eos": True, **options}}
    return GenerationRequest([{{"role": "user", "content": text}}], **options)

def engines():
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.append(one)
    return found

def started(number):
    # Of two looks: a child that is about to run another program looks like its parent.
    seen = []
    while len(both := [one for one in engines() if one in seen]) < number:
        seen = engines()
        time.sleep(0.05)
    return both

async def text(stream):
    return "".join([delta.text async for delta in stream])

def own_mib():
    # Not the unique set size: it grows whenever another process lets go of a library that both have mapped.
    give_back()
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

def settle(*kinds):
    # From here on the program's own memory may not grow. What a first start imports stays for good.
    global settled_mib
    if "thread" in kinds:
        from chancellor.engines.vllm_parts import import_async_llm
        import_async_llm()
    if "transformers" in kinds:
        from transformers import AutoTokenizer
    settled_mib = own_mib()

pool = EnginePool()
model = spec("tiny", {model!r})
found = {{}}
settle()
"""
AGAIN = """
deltas = list(pool.generate(model, request(max_tokens=5), Ladder(FallbackOptions())))
tokens = sum(len(delta.token_ids) for delta in deltas)
found["again"] = [tokens, deltas[-1].model, [step["step"] for step in deltas[-1].fallbacks]]
deltas = None
"""
TAIL = """
pool.close()
left = [one.pid for one in engines()]
found["left"] = left
found["kept_mib"] = own_mib() - settled_mib
print("FOUND " + json.dumps(found), flush=True)
"""
MOST_KEPT_MIB = 64
"""Of the program's own memory: at most 30 were seen, and an engine's front end has hundreds."""


def run(
    body: str,
    model: Path,
    *,
    timeout_s: float = 480,
    again: bool = True,
    still: Sequence[str] = (),
    under: Sequence[str] = (),
    **environment: str,
) -> dict[str, Any]:
    """Run the body between head and tail; return what it put into `found`.

    What is then `model` has to answer once more, and nothing may be left: no process, no shared memory, no socket or
    other temporary file, and no memory of the program's own beyond what it had when it last called `settle`.

    Args:
        body: the scenario.
        model: the checkpoint of `model`.
        timeout_s: it hangs if it takes longer.
        again: whether to ask once more.
        still: the steps that this last answer may have taken.
        under: the command that runs the program.
        environment: what the program finds in its environment besides.
    """
    script = HEAD.format(model=str(model)) + textwrap.dedent(body) + (AGAIN if again else "") + TAIL
    before = shared_memory()
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as room,
        subprocess.Popen(
            [*under, sys.executable, "-c", script],
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
    print(f"{found['kept_mib']:.1f} MiB kept; asked again: {found.get('again')}")
    assert found["left"] == []
    assert found["kept_mib"] < MOST_KEPT_MIB
    if again:
        tokens, _, steps = found["again"]
        assert tokens == 5
        assert set(steps) <= set(still), steps
    assert process.returncode == 0, errors[-4000:]
    assert files == [], files
    until = time.monotonic() + 60  # multiprocessing's tracker cleans up after the program has ended
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
