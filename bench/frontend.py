"""What the graph leaves of AsyncLLM's speed, with vLLM's front end in a process of its own and in this process.

python bench/frontend.py --config bench/catalogs/h100.toml --model int8 --load 512/128@256 --requests 2048 --json FILE
python bench/frontend.py --clock 1.5 --load 512/128@256 --requests 2048

AsyncLLM is driven directly, in this process. All in one run, their turns alternating; streamed, then in one piece.
With --clock an engine that only keeps time stands in for a GPU's, as many times as fast as one H200 with an 8B model in
int8. FILE gets FILE-streamed.json and FILE-whole.json.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from clock import clock_engine
from side_by_side import loads_of

from chancellor.bench import PerformanceMonitor, Report
from chancellor.bench.targets.local import GraphTarget, LocalTarget, RawTarget
from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.engines.hardware import gpu_count

MODES = {"streamed": True, "whole": False}


def placed(spec: ModelSpec, where: str, **more: Any) -> ModelSpec:
    """Return the entry with its front end in a thread or in a process."""
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"frontend": where, **more})})


def targets_of(spec: ModelSpec, pool: EnginePool, names: list[str], **more: Any) -> list[LocalTarget]:
    """Return the targets; the graph over a thread and raw share an engine."""
    made: dict[str, LocalTarget] = {
        "graph": GraphTarget("graph", placed(spec, "process", **more), pool),
        "thread": GraphTarget("graph, thread", placed(spec, "thread", **more), pool),
        "raw": RawTarget("raw", placed(spec, "thread", **more), pool),
    }
    return [made[name] for name in names]


def show(title: str, report: Report) -> None:
    ratios = {(ratio.against, ratio.load): ratio for ratio in report.ratios}
    for run in report.runs:
        ratio = ratios.get((run.name, run.load))
        beside = f"; graph / it {ratio.tokens_per_s_ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        segments = ", ".join(f"{one.tokens_per_s or 0:,.0f}" for one in run.segments)
        ttft = f"{1e3 * run.ttft_s.p50:.0f} / {1e3 * run.ttft_s.p99:.0f}" if run.ttft_s else "none"
        itl = f", ITL {1e3 * run.itl_s.p50:.0f} / {1e3 * run.itl_s.p99:.0f} ms" if run.itl_s else ""
        rate = f"{run.tokens_per_s or 0:,.0f} tokens/s ({segments}), {run.cpu_utilization or 0:.2f} cores"
        print(f"{title}, {run.load}, {run.name}: {rate}, TTFT {ttft} ms{itl}{beside}")
    print(title, "errors:", sum(run.errors for run in report.runs), "failures:", report.failures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument("--clock", type=float, metavar="SPEED", help="an engine that only keeps time, so fast")
    parser.add_argument("--targets", default="graph,thread,raw", help="graph first, then any of the others")
    parser.add_argument("--modes", default="streamed,whole")
    parser.add_argument("--load", action="append", required=True, help="INPUT/OUTPUT@CONCURRENCIES; repeatable")
    parser.add_argument("--requests", type=int, help="of each segment")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names, modes = options.targets.split(","), options.modes.split(",")
    if names[0] != "graph" or not {"graph", "thread", "raw"}.issuperset(names) or not MODES.keys() >= set(modes):
        parser.error("--targets are graph first, then thread, raw; --modes are streamed, whole")
    spec = Catalog.load(options.config)[options.model]
    loads = [replace(load, requests=options.requests) for load in loads_of(options.load)]
    pool, more = EnginePool(), {}
    if options.clock is not None:
        pool = EnginePool(lambda one: clock_engine(one, options.clock))
        more = {"max_num_seqs": max(load.concurrency or 1 for load in loads)}
    targets = targets_of(spec, pool, names, **more)
    for target in targets:
        if gpu_count() and options.clock is None:
            target.limit_memory(0.4)  # two engines share the GPU
        began = time.perf_counter()
        pool.start(target.spec)  # before all, so that every measurement finds them
        print(f"{target.name}: ready after {time.perf_counter() - began:.0f} s", flush=True)
    for title in modes:

        def saved(report: Report, title: str = title) -> None:
            if options.json:
                report.save(options.json.with_name(f"{options.json.stem}-{title}.json"))

        report = PerformanceMonitor(targets, loads, stream=MODES[title], blocks=options.blocks, on_report=saved).run()
        saved(report)
        show(title, report)
    pool.close()


if __name__ == "__main__":
    main()
