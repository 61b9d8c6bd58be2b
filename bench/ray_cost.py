"""The endpoint on Ray Serve beside `chancellor serve`: processor time of proxy, router and replica, and tokens/s.

python bench/ray_cost.py --concurrency 1,16,64 --blocks 4 --json bench/results/cpu-ray.json

One replica, one router. Both endpoints have an engine of their own and take turns. What is counted as a piece is an
event of a stream. Processor time is that of each process alone, without the engine's.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from ray_server import Processes, processes_of, ray_server
from serving import chancellor_server, cpu_s, front

from chancellor.bench import Load, PerformanceMonitor, Report, Synthetic
from chancellor.bench.machine import Machine
from chancellor.bench.targets.remote import RemoteTarget
from chancellor.catalog import Catalog
from chancellor.engines.hardware import default_dtype
from chancellor.quantization.prepare import prepare

Spent = dict[str, float]


def spent(processes: Processes) -> Spent:
    return {role: sum(map(cpu_s, several)) for role, several in processes.items()}


def over(before: Spent, after: Spent, divisor: float) -> Spent:
    return {role: (after[role] - before[role]) / divisor for role in before}


async def streams(url: str, model: str, number: int, options: argparse.Namespace) -> tuple[int, int]:
    """Ask for so many streams at once; return pieces and tokens."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.output_tokens,
        "ignore_eos": True,
    }
    pieces = tokens = 0

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal pieces, tokens
        async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            response.raise_for_status()
            last = ""
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    pieces, last = pieces + 1, line
        tokens += json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]

    limits = httpx.Limits(max_connections=number)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(number)))
    return pieces, tokens


async def looks(url: str, number: int) -> None:
    """Ask for the list of models so often, eight at a time."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def some(count: int) -> None:
            for _ in range(count):
                (await client.get("/v1/models")).raise_for_status()

        await asyncio.gather(*(some(number // 8) for _ in range(8)))


def costs(url: str, model: str, processes: Processes, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a piece, a token and a small request take, in each process."""
    before, began = spent(processes), time.perf_counter()
    pieces, tokens = asyncio.run(streams(url, model, number, options))
    after, took = spent(processes), time.perf_counter() - began
    asyncio.run(looks(url, options.looks))
    last = spent(processes)
    return {
        "streams": number,
        "pieces": pieces,
        "tokens": tokens,
        "tokens_per_s": tokens / took,
        "cpu_us_per_piece": over(before, after, pieces / 1e6),
        "cpu_us_per_token": over(before, after, tokens / 1e6),
        "cpu_ms_per_small_request": over(after, last, options.looks // 8 * 8 / 1e3),
    }


def rows(report: Report) -> list[dict[str, Any]]:
    """Return the endpoint on Ray against the one alone, for each concurrency."""
    made = []
    for ratio in report.ratios:
        of = {run.name: run for run in report.runs if run.concurrency == ratio.concurrency}
        ours, alone = of[ratio.subject], of[ratio.against]
        made.append(
            {
                "concurrency": ratio.concurrency,
                "errors": {"ray": ours.errors, "alone": alone.errors},
                "tokens_per_s": {"ray": ours.tokens_per_s, "alone": alone.tokens_per_s},
                "tokens_per_s_ratio": {"median": ratio.tokens_per_s_ratio, "pairs": ratio.pairs},
                "ttft_p50_s": {
                    "ray": ours.ttft_s.p50 if ours.ttft_s else None,
                    "alone": alone.ttft_s.p50 if alone.ttft_s else None,
                },
            }
        )
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    spec = Catalog.load(options.config)[options.model]
    folder = prepare(spec, spec.engine.dtype or default_dtype()).folder

    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    numbers = [int(number) for number in options.concurrency.split(",")]
    workload = Synthetic(options.input_tokens, options.output_tokens)
    loads = [Load(workload, concurrency=one, requests=max(8, options.rounds * one)) for one in numbers]
    with (
        chancellor_server(options.config, options.model) as alone,
        ray_server(options.config, options.model) as (ray, driver),
    ):
        urls = {"ray": ray, "alone": alone}
        of: dict[str, Processes] = {"ray": processes_of(driver), "alone": {"endpoint": [front(alone)]}}
        targets = [RemoteTarget(url, model=spec.name, name=name, tokenizer=tokenizer) for name, url in urls.items()]
        report = PerformanceMonitor(targets, loads, blocks=options.blocks).run()
        cost: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for block in range(options.blocks):
            for number in numbers:
                for name in ("ray", "alone") if block % 2 == 0 else ("alone", "ray"):
                    cost[name].append(costs(urls[name], spec.name, of[name], number, options))
                    print(name, json.dumps(cost[name][-1]), flush=True)
    return {
        "machine": Machine.this().model_dump(),
        "model": spec.name,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "rows": rows(report),
        "cost": cost,
    }


def show(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        pairs = row["tokens_per_s_ratio"]["pairs"]
        print(
            f"{row['concurrency']} in flight: {row['tokens_per_s']['ray']:.1f} tokens/s against "
            f"{row['tokens_per_s']['alone']:.1f}, {row['tokens_per_s_ratio']['median']:.3f} "
            f"({min(pairs):.3f} to {max(pairs):.3f}); errors {row['errors']}"
        )
    for name, found in result["cost"].items():
        for unit in ("cpu_us_per_piece", "cpu_us_per_token", "cpu_ms_per_small_request"):
            for number in sorted({one["streams"] for one in found}):
                of = [one[unit] for one in found if one["streams"] == number]
                parts = ", ".join(f"{role} {median(one[role] for one in of):.1f}" for role in of[0])
                print(f"{name}, {number} streams, {unit}: {parts}; all {median(sum(one.values()) for one in of):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="requests over concurrency; at least 8 requests")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--looks", type=int, default=160, help="small requests in each block")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end as well
    result = measure(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
