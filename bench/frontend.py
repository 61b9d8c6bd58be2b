"""What the place of vLLM's front end changes: the graph over one in a process of its own, and over one in this process.

python bench/frontend.py --config bench/catalogs/h100.toml --model int8 --load 512/128@256 --requests 1024 --json FILE

Beside both AsyncLLM driven directly, on the engine of the second. All in one run, their turns alternating; streamed,
then in one piece. FILE gets FILE-streamed.json and FILE-whole.json.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from side_by_side import loads_of

from chancellor.bench import PerformanceMonitor, Report
from chancellor.bench.targets.local import GraphTarget, LocalTarget, RawTarget
from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.engines.hardware import gpu_count


def in_a(where: str, spec: ModelSpec) -> ModelSpec:
    """Return the entry with its front end in a thread or in a process."""
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"frontend": where})})


def targets_of(spec: ModelSpec, pool: EnginePool) -> list[LocalTarget]:
    targets: list[LocalTarget] = [
        GraphTarget("graph", in_a("process", spec), pool),
        GraphTarget("graph, thread", in_a("thread", spec), pool),
        RawTarget("raw", in_a("thread", spec), pool),
    ]
    if gpu_count():
        for target in targets:  # two engines share the GPU
            target.limit_memory(0.4)
    return targets


def show(title: str, report: Report) -> None:
    ratios = {(ratio.against, ratio.load): ratio for ratio in report.ratios}
    for run in report.runs:
        ratio = ratios.get((run.name, run.load))
        beside = f"; graph / it {ratio.tokens_per_s_ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        segments = ", ".join(f"{one.tokens_per_s or 0:,.0f}" for one in run.segments)
        ttft = f"{1e3 * run.ttft_s.p50:.0f} / {1e3 * run.ttft_s.p99:.0f}" if run.ttft_s else "none"
        rate = f"{run.tokens_per_s or 0:,.0f} tokens/s ({segments})"
        print(f"{title}, {run.load}, {run.name}: {rate}, TTFT {ttft} ms{beside}")
    print(title, "errors:", sum(run.errors for run in report.runs), "failures:", report.failures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument("--load", action="append", default=[], help="INPUT/OUTPUT@CONCURRENCIES; repeatable")
    parser.add_argument("--requests", type=int, help="of each segment")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pool = EnginePool()
    spec = Catalog.load(options.config)[options.model]
    targets = targets_of(spec, pool)
    for target in targets[:2]:
        began = time.perf_counter()
        pool.start(target.spec)  # before all, so that both measurements find them
        print(f"{target.name}: ready after {time.perf_counter() - began:.0f} s", flush=True)
    loads = [replace(load, requests=options.requests) for load in loads_of(options.load)]
    for title, stream in (("streamed", True), ("whole", False)):

        def saved(report: Report, title: str = title) -> None:
            if options.json:
                report.save(options.json.with_name(f"{options.json.stem}-{title}.json"))

        more: dict[str, Any] = {"stream": stream, "blocks": options.blocks, "on_report": saved}
        report = PerformanceMonitor(targets, loads, **more).run()
        saved(report)
        show(title, report)
    pool.close()


if __name__ == "__main__":
    main()
