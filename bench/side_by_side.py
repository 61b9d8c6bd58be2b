"""Models of a catalog side by side on one GPU: started at the same time, in processes of their own, measured in turn.

python bench/side_by_side.py --config bench/catalogs/h100.toml --models bf16,int8 --load 128/128@1,32 --json FILE

`chancellor bench --against` starts its targets one after another, as starting engines would measure each other's
memory. Where the size of every KV cache is given (`--kv-cache-gib`), nothing is measured, and all can start at once.
Ratios are to the first model. A model that does not start is left out.
"""

import argparse
import asyncio
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from chancellor.bench import PerformanceMonitor, Report
from chancellor.bench.load import Load
from chancellor.bench.summary import compare_runs
from chancellor.bench.targets.local import RawTarget
from chancellor.bench.workload import Synthetic
from chancellor.catalog import Catalog
from chancellor.engines import EnginePool


def loads_of(texts: list[str]) -> list[Load]:
    """Read loads such as 512/128@1,32."""
    loads = []
    for text in texts:
        lengths, numbers = text.split("@")
        given, made = (int(length) for length in lengths.split("/"))
        workload = Synthetic(input_tokens=given, output_tokens=made)
        loads += [Load(workload, concurrency=int(number)) for number in numbers.split(",")]
    return loads


class InTurn(RawTarget):
    """A target that waits for its turn before each segment, and before it is closed."""

    turns = 0

    async def _turn(self) -> None:
        print("waiting", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

    async def begin(self) -> bool:
        if self.turns % 2 == 0:  # once before the warm-up, once after it
            await self._turn()
        self.turns += 1
        return await super().begin()

    async def close(self) -> None:
        await self._turn()
        await super().close()


def measure_one(options: argparse.Namespace) -> None:
    """Start one model, and measure whenever a line arrives."""
    spec = Catalog.load(options.config)[options.one]
    engine = {"kv_cache_gib": options.kv_cache_gib} if options.kv_cache_gib else {}
    target = InTurn(
        options.one, spec.model_copy(update={"engine": spec.engine.model_copy(update=engine)}), EnginePool()
    )
    target.limit_memory(options.share)
    monitor = PerformanceMonitor(
        [target],
        loads_of(options.load),
        blocks=options.blocks,
        start_timeout_s=options.start_timeout,
        on_report=lambda report: report.save(options.json),
    )
    monitor.run().save(options.json)


class Child:
    """The process of one model."""

    def __init__(self, name: str, options: argparse.Namespace, room: Path) -> None:
        self.name, self.file, self.log = name, room / f"{name}.json", room / f"{name}.txt"
        command = [sys.executable, __file__, "--one", name, "--config", options.config, "--json", str(self.file)]
        command += ["--blocks", str(options.blocks), "--start-timeout", str(options.start_timeout)]
        command += ["--share", str(round(0.88 / len(options.models.split(",")), 3))]
        command += [word for load in options.load for word in ("--load", load)]
        if options.kv_cache_gib:
            command += ["--kv-cache-gib", str(options.kv_cache_gib)]
        environment = {**os.environ, "CHANCELLOR_LOG_DIR": str((options.logs or room) / name)}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, env=environment
            )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            if line == "waiting\n":
                self._said.put("waiting")
        self._said.put(None)

    def waits(self, until: float) -> bool:
        """Return whether it waits for its turn by then; not if it has ended."""
        try:
            return self._said.get(timeout=max(0.0, until - time.monotonic())) is not None
        except queue.Empty:
            return False

    def turn(self, until: float) -> bool:
        """Let it measure one segment."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.waits(until)

    def report(self) -> Report | None:
        return Report.load(self.file) if self.file.is_file() else None

    def end(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def merged(reports: list[Report], options: argparse.Namespace) -> Report:
    """Return one report of all models, its ratios to the first one."""
    first = {run.load: run for run in reports[0].runs}
    pairs = [(run, first[run.load]) for report in reports[1:] for run in report.runs if run.load in first]
    settings: dict[str, Any] = {
        **reports[0].settings,
        "targets": {name: detail for report in reports for name, detail in report.settings["targets"].items()},
        "started": "at the same time",
        "kv_cache_gib": options.kv_cache_gib,
    }
    return reports[0].model_copy(
        update={
            "settings": settings,
            "failures": {name: why for report in reports for name, why in report.failures.items()},
            "starts_s": {name: value for report in reports for name, value in report.starts_s.items()},
            "facts": {name: facts for report in reports for name, facts in report.facts.items()},
            "runs": [run for report in reports for run in report.runs],
            "ratios": [ratio for pair in pairs if (ratio := compare_runs(*pair)) is not None],
        }
    )


def show(report: Report) -> None:
    """Print a line for each model: tokens/s for each load (for prefill, of input), with the ratio to the first."""
    ratios = {(ratio.subject, ratio.load): ratio for ratio in report.ratios}
    for name in report.starts_s:
        cells = []
        for run in (run for run in report.runs if run.name == name):
            ratio = ratios.get((name, run.load))
            against = f" ({ratio.tokens_per_s_ratio:.3f}, {ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
            prefill = "/1 " in run.load
            rates = [(part.input_tokens_per_s if prefill else part.tokens_per_s) or 0 for part in run.segments]
            cells.append(f"{run.load}: {', '.join(f'{rate:,.0f}' for rate in rates)}{against}")
        weights = report.facts.get(name, {}).get("weights_gib")
        print(f"{name}: ready in {report.starts_s[name]:.0f} s, {weights} GiB; {'; '.join(cells)}", flush=True)


def measure_all(options: argparse.Namespace, room: Path) -> None:
    until = time.monotonic() + options.seconds
    children = [Child(name, options, room) for name in options.models.split(",")]
    try:
        ready = [child for child in children if child.waits(until)]
        for child in children:
            if child not in ready:
                print(f"{child.name} did not start: {child.log.read_text(errors='replace')[-1500:]}", flush=True)
        for block in range(options.blocks):
            for _ in loads_of(options.load):
                for child in list(ready) if block % 2 == 0 else list(reversed(ready)):
                    if time.monotonic() < until and not child.turn(until):
                        ready.remove(child)
    finally:
        reports = [report for child in children if (report := child.report()) is not None and report.runs]
        if reports:
            report = merged(reports, options)
            show(report)
            if options.json:
                report.save(options.json)
        for child in children:
            child.process.stdin and child.process.stdin.close()
        for child in children:
            child.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the catalog")
    parser.add_argument("--models", default="", help="names, the one to compare with first")
    parser.add_argument("--load", action="append", default=[], help="INPUT/OUTPUT@CONCURRENCIES; repeatable")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--kv-cache-gib", type=float)
    parser.add_argument("--start-timeout", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no segment later than this")
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(options)
        return
    with tempfile.TemporaryDirectory() as room:
        measure_all(options, Path(room))


if __name__ == "__main__":
    main()
