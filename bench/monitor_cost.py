"""What does measuring cost?  The same load on AsyncLLM, counted by hand and by the monitor, alternating.

Throughput is what counts, and is noisy. The processor time of this process (the engine core has another one) is not:
it is given for each token, and the difference between the two as a share of a core at the measured rate.

python bench/monitor_cost.py --model smollm2-135m-int8 --concurrency 32 --blocks 6
"""

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from chancellor.bench import Load, Objectives, Synthetic
from chancellor.bench.machine import Machine
from chancellor.bench.measure import Measurement, measure
from chancellor.bench.statistics import Ratio
from chancellor.bench.targets.local import RawTarget
from chancellor.bench.words import TextMaker
from chancellor.catalog import Catalog
from chancellor.engines import default_pool
from chancellor.engines.prompt import render

T = TypeVar("T")


class Cost(NamedTuple):
    tokens_per_s: float
    cpu_us_per_token: float


async def by_hand(target: RawTarget, load: Load, seed: str) -> Cost:
    """Run a bare closed loop: no clock per piece, no samples, nobody watching."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    llm: Any = target.engine.inner()
    tokenizer = llm.get_tokenizer()
    await target.begin()
    made = load.workload.conversations(load.count, seed, TextMaker(tokenizer))
    waiting = iter(made)

    async def worker() -> int:
        tokens = 0
        for one in waiting:
            prompt = tokens_input(render(tokenizer, [{"role": "user", "content": one.turns[0]}]).token_ids)
            sampling = SamplingParams(
                max_tokens=one.max_tokens[0], temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
            )
            async for output in llm.generate(prompt, sampling, f"bare-{uuid.uuid4().hex}"):
                tokens += len(output.outputs[0].token_ids)
        return tokens

    async def run() -> Cost:
        began, used = time.perf_counter(), time.process_time()
        tokens = sum(await asyncio.gather(*(worker() for _ in range(load.concurrency or 1))))
        elapsed = time.perf_counter() - began
        return Cost(tokens / elapsed, (time.process_time() - used) / tokens * 1e6)

    return await target.drive(run)


class Clocked(RawTarget):
    """Takes the processor time of the load itself, as `by_hand` does: without prompts, warm-up and summing up."""

    cpu_s = 0.0

    async def drive(self, run: Callable[[], Awaitable[T]]) -> T:
        async def clocked() -> T:
            used = time.process_time()
            try:
                return await run()
            finally:
                self.cpu_s = time.process_time() - used

        return await super().drive(clocked)


async def monitored(target: Clocked, load: Load, seed: str, block: int) -> Cost:
    """Run it as the monitor does, with all that it writes down."""
    measurement = Measurement(block)
    await measure(
        target,
        load,
        seed=seed,
        arrivals=seed,
        block=block,
        stream=True,
        warmup=0,
        into=measurement,
        on_sample=lambda _: None,
    )
    tokens = sum(sample.output_tokens or 0 for sample in measurement.samples)
    return Cost(measurement.segment(Objectives()).tokens_per_s or 0.0, target.cpu_s / tokens * 1e6)


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    catalog = Catalog.load(options.config)
    target = Clocked("raw", catalog[options.model], default_pool())
    load = Load(
        Synthetic(options.input_tokens, options.output_tokens),
        concurrency=options.concurrency,
        requests=options.requests,
    )
    await target.start()
    await by_hand(target, load, "warm-up")
    hand: list[Cost] = []
    watched: list[Cost] = []
    for block in range(options.blocks):
        # A B, B A, A B, ...
        for with_monitor in (False, True) if block % 2 == 0 else (True, False):
            seed = f"{block}/{with_monitor}"
            if with_monitor:
                watched.append(await monitored(target, load, seed, block))
            else:
                hand.append(await by_hand(target, load, seed))
        for name, cost in (("by hand", hand[-1]), ("monitored", watched[-1])):
            print(
                f"{block} {name}: {cost.tokens_per_s:,.1f} tokens/s, {cost.cpu_us_per_token:.0f} us/token", flush=True
            )
    await target.close()
    ratio = Ratio.of([cost.tokens_per_s for cost in watched], [cost.tokens_per_s for cost in hand])
    more = median(cost.cpu_us_per_token for cost in watched) - median(cost.cpu_us_per_token for cost in hand)
    return {
        "machine": Machine.this().model_dump(),
        "load": load.label,
        "by_hand": [cost._asdict() for cost in hand],
        "monitored": [cost._asdict() for cost in watched],
        "ratio": ratio.model_dump() if ratio else None,
        "more_cpu_us_per_token": more,
        "more_of_a_core": more * 1e-6 * median(cost.tokens_per_s for cost in hand),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asyncio.run(compare(options))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if (ratio := result["ratio"]) is None:
        raise SystemExit("Nothing was measured.")
    print(
        f"more processor time: {result['more_cpu_us_per_token']:.1f} us/token, {result['more_of_a_core']:.2%} of a core"
    )
    print(f"monitored / by hand: median {ratio['value']:.4f}, from {ratio['low']:.4f} to {ratio['high']:.4f}")


if __name__ == "__main__":
    main()
