"""What does measuring cost?  The same load on AsyncLLM, counted by hand and by the monitor, alternating.

python bench/monitor_cost.py --model smollm2-135m-int8 --concurrency 32 --blocks 6
"""

import argparse
import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

from chancellor.bench import Load, Objectives, Synthetic
from chancellor.bench.machine import Machine
from chancellor.bench.measure import Measurement, measure
from chancellor.bench.statistics import Ratio
from chancellor.bench.targets.local import RawTarget
from chancellor.bench.words import TextMaker
from chancellor.catalog import Catalog
from chancellor.engines import default_pool
from chancellor.engines.prompt import render


async def by_hand(target: RawTarget, load: Load, seed: str) -> float:
    """Return tokens/s of a bare closed loop: no clock per piece, no samples, nobody watching."""
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

    async def run() -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*(worker() for _ in range(load.concurrency or 1)))
        return sum(counts) / (time.perf_counter() - began)

    return await target.drive(run)


async def monitored(target: RawTarget, load: Load, seed: str, block: int) -> float:
    """Return tokens/s as the monitor measures it, with all that it writes down."""
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
    return measurement.segment(Objectives()).tokens_per_s or 0.0


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    catalog = Catalog.load(options.config)
    target = RawTarget("raw", catalog[options.model], default_pool())
    load = Load(
        Synthetic(options.input_tokens, options.output_tokens),
        concurrency=options.concurrency,
        requests=options.requests,
    )
    await target.start()
    await by_hand(target, load, "warm-up")
    hand, watched = [], []
    for block in range(options.blocks):
        # A B, B A, A B, ...
        for with_monitor in (False, True) if block % 2 == 0 else (True, False):
            seed = f"{block}/{with_monitor}"
            if with_monitor:
                watched.append(await monitored(target, load, seed, block))
            else:
                hand.append(await by_hand(target, load, seed))
        print(f"block {block}: by hand {hand[-1]:,.1f}, monitored {watched[-1]:,.1f} tokens/s", flush=True)
    await target.close()
    ratio = Ratio.of(watched, hand)
    return {
        "machine": Machine.this().model_dump(),
        "load": load.label,
        "by_hand": hand,
        "monitored": watched,
        "ratio": ratio.model_dump() if ratio else None,
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
    print(f"monitored / by hand: median {ratio['value']:.4f}, from {ratio['low']:.4f} to {ratio['high']:.4f}")


if __name__ == "__main__":
    main()
