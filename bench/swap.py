"""What does it cost that two models take turns?  Asks them one after the other, where only one at a time fits.

python bench/swap.py --config bench/catalogs/h100.toml --models int8,bf16 --turns 20 --kv-cache-gib 32 --json FILE

A turn needs a start, a wake, or nothing. Each model's text has to be that of its first turn, and the device's memory
what it was when the same model had answered in the same situation before. What this program and the machine have is
noted before the first start, before the end, and after it, when the engines are gone and the program has given back
what it could. --no-sleep has engines stopped instead of put
to sleep; --memory-share makes it tight on a machine where all of them would fit.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.engines.room import Room
from chancellor.memory import Device, devices, host_free
from chancellor.resources import give_back

GIB = 2**30
QUESTION = [{"role": "user", "content": "What is two plus two?"}]
NEEDS = {"ready": "nothing", "asleep": "wake", "waking": "wake"}
"""By state; all others need a start."""


class Turn(NamedTuple):
    """One question and its answer."""

    model: str
    needed: Literal["start", "wake", "nothing"]
    seconds: float
    others: dict[str, str]
    """States of the other models, by name."""
    free_gib: float
    """On the first device."""
    host_gib: float
    text: str


def memory_gib() -> dict[str, float]:
    """Return what this program has for itself, and what the machine and its first device have left."""
    own, machine = psutil.Process().memory_full_info(), psutil.virtual_memory()
    return {
        name: round(size / GIB, 3)
        for name, size in {
            "program_rss": own.rss,
            "program_uss": own.uss,
            "free_on_the_device": devices()[0].free,
            "free_on_the_machine": machine.available,
            "file_cache": machine.cached,
            "shared": machine.shared,
        }.items()
    }


def configured(spec: ModelSpec, *, sleeps: bool, kv_cache_gib: float | None) -> ModelSpec:
    """Return the entry with what the command line says of it."""
    changed: dict[str, Any] = {} if sleeps else {"sleep": False}
    if kv_cache_gib is not None:
        changed["kv_cache_gib"] = kv_cache_gib
    return spec.model_copy(update={"engine": spec.engine.model_copy(update=changed)})


def ask(pool: EnginePool, specs: list[ModelSpec], number: int) -> Turn:
    """Ask the model whose turn it is; return what that took."""
    spec = specs[number % len(specs)]
    needed: Any = NEEDS.get(pool.state(spec), "start")
    request = GenerationRequest(QUESTION, max_tokens=32, temperature=0.0, ignore_eos=True, retries=1)
    began = time.perf_counter()
    text = "".join(delta.text for delta in pool.generate(spec, request))
    return Turn(
        model=spec.name,
        needed=needed,
        seconds=round(time.perf_counter() - began, 3),
        others={other.name: pool.state(other) for other in specs if other is not spec},
        free_gib=round(devices()[0].free / GIB, 3),
        host_gib=round(host_free() / GIB, 3),
        text=text,
    )


def summary(turns: list[Turn], swaps: dict[str, int]) -> dict[str, Any]:
    """Return what the turns have in common: seconds by what they needed, texts, and memory that does not come back."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    alike: defaultdict[str, list[float]] = defaultdict(list)
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for turn in turns:
        seconds[turn.needed].append(turn.seconds)
        alike[json.dumps([turn.model, turn.needed, turn.others])].append(turn.free_gib)
        texts[turn.model].add(turn.text)
    return {
        "median_s": {needed: round(statistics.median(took), 3) for needed, took in seconds.items()},
        "longest_s": {needed: max(took) for needed, took in seconds.items()},
        "turns": {needed: len(took) for needed, took in seconds.items()},
        "grown_gib": max((round(free[0] - free[-1], 3) for free in alike.values() if len(free) > 1), default=None),
        "texts_equal": {model: len(found) == 1 for model, found in texts.items()},
        "swaps": swaps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--models", required=True, help="the names of those that take turns")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--no-sleep", action="store_true")
    parser.add_argument("--kv-cache-gib", type=float)
    parser.add_argument("--memory-share", type=float)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    catalog = Catalog.load(options.config)
    specs = [
        configured(catalog[name], sleeps=not options.no_sleep, kv_cache_gib=options.kv_cache_gib)
        for name in options.models.split(",")
    ]

    def read() -> list[Device]:
        return devices(options.memory_share)

    pool = EnginePool(room=Room(read=read))
    turns: list[Turn] = []
    found: dict[str, Any] = {}
    memory = {"before_the_first_start": memory_gib()}
    print(f"{devices()[0].name}: {devices()[0].free / GIB:.1f} GiB free; host: {host_free() / GIB:.1f} GiB")
    try:
        for number in range(options.turns):
            turns.append(turn := ask(pool, specs, number))
            others = ", ".join(f"{name} {state}" for name, state in turn.others.items())
            print(
                f"{number:3} {turn.model}: {turn.seconds:7.2f} s ({turn.needed}); {others}; "
                f"free {turn.free_gib:.2f} GiB, host {turn.host_gib:.2f} GiB",
                flush=True,
            )
    finally:
        memory["before_closing"] = memory_gib()
        found = {"arguments": sys.argv[1:], **summary(turns, pool.swaps())}
        pool.close()
        give_back()
        memory["after_the_end"] = memory_gib()
        freed = [memory[when]["free_on_the_device"] for when in ("before_the_first_start", "after_the_end")]
        found["left_behind_gib"] = round(freed[0] - freed[1], 3)
        found["memory_gib"] = memory
        if options.json:
            found["each"] = [turn._asdict() for turn in turns]
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: value for name, value in found.items() if name != "each"}, indent=1))
    if not all(found["texts_equal"].values()):
        sys.exit("A model did not answer as it did before.")


if __name__ == "__main__":
    main()
