"""`chancellor serve` beside vLLM's own server: the same model and settings, the same client, alternating.

python bench/serving.py --concurrency 1,16,64 --json FILE
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from vllm_server import end
from vllm_server import server as vllm_server

from chancellor.bench import Load, PerformanceMonitor, Report, Synthetic
from chancellor.bench.targets.remote import RemoteTarget
from chancellor.catalog import Catalog
from chancellor.engines.hardware import default_dtype
from chancellor.quantization.prepare import prepare

READY_S = 600.0


@contextlib.contextmanager
def chancellor_server(config: Path | None, model: str) -> Iterator[str]:
    """Run `chancellor serve` and give its URL, when the model answers."""
    where = () if config is None else ("--config", str(config))
    arguments = [sys.executable, "-m", "chancellor.cli", "serve", "--port", "0", "--preload", model, *where]
    log = Path(tempfile.gettempdir()) / f"chancellor-serve-{os.getpid()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
    try:
        url, deadline = "", time.monotonic() + READY_S
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"chancellor serve is not ready; its log is {log}")
            found = re.search(r"http://[\d.]+:\d+", log.read_text(encoding="utf-8"))
            url = found[0] if found else ""
            with contextlib.suppress(httpx.HTTPError):
                if url and httpx.get(f"{url}/ready").is_success:
                    break
            time.sleep(0.5)
        yield url
    finally:
        end(process)


def rows(report: Report) -> list[dict[str, Any]]:
    """Return ours against theirs, for each concurrency."""
    made = []
    for ratio in report.ratios:
        of = {run.name: run for run in report.runs if run.concurrency == ratio.concurrency}
        mine, theirs = of[ratio.subject], of[ratio.against]
        if mine.ttft_s is None or theirs.ttft_s is None:
            continue
        made.append(
            {
                "concurrency": ratio.concurrency,
                "errors": {"chancellor": mine.errors, "vllm": theirs.errors},
                "tokens_per_s": {"chancellor": mine.tokens_per_s, "vllm": theirs.tokens_per_s},
                "tokens_per_s_ratio": {"median": ratio.tokens_per_s_ratio, "pairs": ratio.pairs},
                "ttft_p50_s": {"chancellor": mine.ttft_s.p50, "vllm": theirs.ttft_s.p50},
                "ttft_p99_s": {"chancellor": mine.ttft_s.p99, "vllm": theirs.ttft_s.p99},
                "ttft_p99_ratio": mine.ttft_s.p99 / theirs.ttft_s.p99,
            }
        )
    return made


def front(url: str) -> psutil.Process:
    """Return the process that listens there; the engine runs below it."""
    port = int(url.rpartition(":")[2])
    found = (
        one
        for one in psutil.net_connections("tcp")
        if one.status == "LISTEN" and getattr(one.laddr, "port", None) == port
    )
    return psutil.Process(next(one.pid for one in found if one.pid is not None))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def tokens(report: Report, name: str) -> float:
    """Return the tokens of a target, those of its warm-up about included."""
    runs = [run for run in report.runs if run.name == name]
    measured = sum((run.tokens_per_s or 0.0) * run.duration_s for run in runs)
    warmups = sum(
        (run.concurrency or 1) * len(run.segments) / max(1, run.requests) * (run.tokens_per_s or 0.0) * run.duration_s
        for run in runs
    )
    return measured + warmups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument(
        "--ask-for", help="the model to name to ours: `chancellor` lets it choose; by default, the same"
    )
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="requests over concurrency; at least 8 requests")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--gpu-share", type=float, help="of vLLM's server: two engines share the GPU")
    parser.add_argument("--no-stream", dest="stream", action="store_false")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end as well
    spec = Catalog.load(options.config)[options.model]
    dtype = spec.engine.dtype or default_dtype()
    folder = prepare(spec, dtype).folder
    shared = {} if options.gpu_share is None else {"gpu_memory_utilization": options.gpu_share}
    engine = spec.engine.model_copy(update=shared)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    loads = [
        Load(
            Synthetic(options.input_tokens, options.output_tokens),
            concurrency=concurrency,
            requests=max(8, options.rounds * concurrency),
        )
        for concurrency in map(int, options.concurrency.split(","))
    ]
    with (
        chancellor_server(options.config, options.model) as ours,
        vllm_server(spec.model_copy(update={"engine": engine}), dtype, port) as theirs,
    ):
        targets = [
            RemoteTarget(ours, model=options.ask_for or spec.name, name="chancellor", tokenizer=tokenizer),
            RemoteTarget(theirs, model=spec.name, name="vllm", tokenizer=tokenizer),
        ]
        fronts = {"chancellor": front(ours), "vllm": front(theirs)}
        before = {name: cpu_s(process) for name, process in fronts.items()}
        cpu: dict[str, float] = {}

        def saved(report: Report) -> None:
            """Write what there is, after each segment: the time may be up before the last."""
            made = {name: tokens(report, name) for name in fronts}
            cpu.update({name: 1e6 * (cpu_s(fronts[name]) - before[name]) / one for name, one in made.items() if one})
            if options.json:
                whole = {"machine": report.machine.model_dump(), "model": spec.name, "stream": options.stream}
                whole |= {"state": report.state, "rows": rows(report), "failures": report.failures}
                whole["cpu_us_per_token_of_the_front"] = cpu
                options.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

        report = PerformanceMonitor(targets, loads, blocks=options.blocks, stream=options.stream, on_report=saved).run()
        saved(report)
    found = rows(report)
    for row in found:
        pairs = row["tokens_per_s_ratio"]["pairs"]
        mine, other = row["ttft_p99_s"].values()
        print(
            f"{row['concurrency']} in flight: {row['tokens_per_s']['chancellor']:.1f} tokens/s against "
            f"{row['tokens_per_s']['vllm']:.1f}, {row['tokens_per_s_ratio']['median']:.3f} ({min(pairs):.3f} to "
            f"{max(pairs):.3f}); TTFT p99 {mine * 1000:.0f} ms against {other * 1000:.0f}, "
            f"{row['ttft_p99_ratio']:.2f}; errors {row['errors']}"
        )
    for where, why in report.failures.items():
        print(f"{where}: {why}")
    print(f"CPU of the server's own process, us a token: {cpu['chancellor']:.0f} against {cpu['vllm']:.0f}")


if __name__ == "__main__":
    main()
