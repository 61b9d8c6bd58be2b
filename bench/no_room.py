"""A model that does not fit because somebody else has taken the GPU's memory: which rung of the ladder serves?

python bench/no_room.py --config bench/catalogs/h100.toml --models bf16,int8 --leave-gib 15 --json FILE

A process of its own takes all but --leave-gib of the first GPU. The first model is asked for; the others may answer
instead. Two questions are asked, then the memory is given back, and --again asks the first model once more.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.engines.ladder import Ladder
from chancellor.fallbacks import FallbackOptions
from chancellor.memory import devices

TAKE = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
taken = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.readline()
"""
QUESTION = [{"role": "user", "content": "What is two plus two?"}]


def ask(pool: EnginePool, catalog: Catalog, names: list[str]) -> dict[str, Any]:
    """Return what became of one question to the first of the models."""
    first, others = catalog[names[0]], [catalog[name] for name in names[1:]]
    ladder = Ladder(FallbackOptions(), others=lambda: others)
    began = time.perf_counter()
    request = GenerationRequest(QUESTION, max_tokens=32, temperature=0.0, ignore_eos=True)
    *_, last = pool.generate(first, request, ladder)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "model": last.model,
        "quantization": last.quantization,
        "tokens": last.output_tokens,
        "fallbacks": list(last.fallbacks),
        "free_gib": round(devices()[0].free / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--models", required=True, help="the one to ask, then its substitutes")
    parser.add_argument("--leave-gib", type=float, required=True)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    catalog, names = Catalog.load(options.config), options.models.split(",")
    found: dict[str, Any] = {"free_gib": round(devices()[0].free / 2**30, 2), "answers": []}
    pool = EnginePool()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", TAKE, str(options.leave_gib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as taker:
            if taker.stdout is None or not taker.stdout.readline():
                sys.exit("The memory could not be taken.")
            found["left_gib"] = round(devices()[0].free / 2**30, 2)
            for _ in range(2):
                found["answers"].append(ask(pool, catalog, names))
                print(json.dumps(found["answers"][-1]), flush=True)
        if options.again:
            found["answers"].append(ask(pool, catalog, names))
            print(json.dumps(found["answers"][-1]), flush=True)
    finally:
        pool.close()
        found["free_at_the_end_gib"] = round(devices()[0].free / 2**30, 2)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"free: {found['free_gib']} GiB, left {found['left_gib']}, at the end {found['free_at_the_end_gib']}")


if __name__ == "__main__":
    main()
