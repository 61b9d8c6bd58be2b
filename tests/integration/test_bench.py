"""The monitor on real engines: what it reports is what they did."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chancellor import Catalog, PerformanceMonitor
from chancellor.bench import AgentTurns, Load, Report, Synthetic
from chancellor.bench.against import make_targets
from chancellor.engines import EnginePool
from tests.integration.conftest import INT8
from tests.integration.ports import free_port
from tests.integration.test_processes import all_gone, descendants, tiny_catalog

__all__ = ["tiny_catalog"]
pytestmark = pytest.mark.engine


def test_the_graph_beside_the_engine_that_it_stands_on(catalog: Catalog, pool: EnginePool) -> None:
    report = PerformanceMonitor.of(
        "graph",
        model=INT8,
        catalog=catalog,
        against=["raw", "engine", "chat"],
        workload=Synthetic(64, 6),
        concurrency=[4],
        requests=4,
        pool=pool,
        blocks=2,
    ).run()
    assert [run.name for run in report.runs] == ["graph", "raw", "engine", "chat"]
    for run in report.runs:
        assert (run.requests, run.errors) == (8, 0), run.error_kinds
        rests = []
        for sample in run.samples:
            assert (sample.input_tokens, sample.output_tokens) == (64, 6)
            assert sample.latency_s is not None
            assert sample.ttft_s is not None
            assert sample.queue_s is not None
            assert 0 <= sample.queue_s < sample.ttft_s < sample.latency_s
            assert sample.itl_s is not None
            rests.append(sample.latency_s - sample.ttft_s - sum(sample.itl_s))
        assert -0.001 < min(rests) < 0.05  # the others may have met a pause of the machine
        assert run.tokens_per_s == pytest.approx(8 * 6 / run.duration_s)
        assert run.peak_running == 4
        assert run.kv_cache_usage is not None
        assert 0 < run.kv_cache_usage < 1
        assert run.prefix_cache_hit_rate == 0  # no prompt came twice
        assert run.preemptions == 0
        # Of one block at least, in which the machine was not busy with something else.
        assert max(segment.cpu_utilization or 0 for segment in run.segments) > 0.3
        assert run.process_memory_mib is not None
        assert run.process_memory_mib > 500
    assert len(report.ratios) == 3
    assert report.facts["graph"]["kv_cache_tokens"] > 1000


def test_agents_find_their_prefix_in_the_cache(catalog: Catalog, pool: EnginePool) -> None:
    load = Load(AgentTurns(prefix_tokens=128, turns=3, input_tokens=16, output_tokens=4), concurrency=2, requests=6)
    targets = make_targets("engine", [], catalog=catalog, model=INT8, pool=pool)
    run = PerformanceMonitor(targets, [load], blocks=1, stream=False).run().runs[0]
    assert (run.requests, run.errors) == (6, 0)
    assert run.prefix_cache_hit_rate is not None
    assert run.prefix_cache_hit_rate > 0.5
    assert sum(sample.cached_tokens or 0 for sample in run.samples) > 300


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """vLLM's own server with the demo model, as users run it."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "bench/vllm_server.py", "--serve-only", "--port", str(port)])
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, "the server ended"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        else:
            pytest.fail("the server did not get ready")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        children = descendants(process)  # type: ignore[arg-type]
        process.terminate()
        process.wait(90)
        assert all_gone(children)


def test_a_server_is_measured_like_an_engine(server: str, catalog: Catalog, pool: EnginePool) -> None:
    for stream in (True, False):
        targets = make_targets(server, [], catalog=catalog, model=INT8, pool=pool)
        load = Load(Synthetic(64, 6), concurrency=4, requests=8)
        run = PerformanceMonitor(targets, [load], blocks=1, stream=stream).run().runs[0]
        assert (run.requests, run.errors) == (8, 0), run.error_kinds
        assert run.input_tokens is not None
        assert (run.input_tokens.min, run.input_tokens.max) == (64, 64)
        assert run.output_tokens is not None
        assert (run.output_tokens.min, run.output_tokens.max) == (6, 6)
        assert run.kv_cache_usage is not None  # from the server's /metrics
        assert run.preemptions == 0
        assert run.prefix_cache_hit_rate is not None
        assert run.prefix_cache_hit_rate < 0.3  # the template's head may be found
        assert sum(segment.prefix_cache_queries or 0 for segment in run.segments) == 8 * 64
        assert run.process_memory_mib is None  # of another process, maybe on another machine
        if stream:
            assert run.itl_s is not None
            assert 8 <= run.itl_s.n <= 8 * 5  # two tokens may come in one piece
        else:
            assert run.itl_s is None
            assert run.ttft_s is None  # a server does not say


def test_an_interrupted_command_keeps_and_reports_what_it_has(tiny_catalog: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    page = tmp_path / "bench.html"
    command = [
        *(sys.executable, "-m", "chancellor.cli", "bench", "--config", tiny_catalog, "--concurrency", "1,2"),
        *("--requests", "4", "--output-tokens", "64", "--blocks", "500"),
        *("--json", str(file), "--report", str(page)),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 300
        while not file.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = descendants(process)
        assert children
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "The run was interrupted" in out
    report = Report.load(file)
    assert report.state == "interrupted"
    assert sum(run.requests for run in report.runs) >= 4
    assert "interrupted" in page.read_text(encoding="utf-8")
    assert all_gone(children)


def test_the_command_measures_and_compares(tmp_path: Path) -> None:
    def bench(name: str, *options: str) -> Any:
        file = tmp_path / name
        command = [
            *(sys.executable, "-m", "chancellor.cli", "bench", "--shape", "nano", "--load", "32/4@1,3"),
            *("--json", str(file), *options),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
        assert made.returncode == 0, made.stderr
        return json.loads(file.read_text(encoding="utf-8"))

    found = bench(
        "one.json",
        *("--against", "raw", "--against", "transformers", "--blocks", "2", "--slo", "latency=60"),
        *("--report", str(tmp_path / "one.html"), "--plots", str(tmp_path / "plots")),
    )
    assert [(run["name"], run["concurrency"]) for run in found["runs"]] == [
        (name, concurrency) for concurrency in (1, 3) for name in ("graph", "raw", "transformers")
    ]
    for run in found["runs"]:
        assert run["errors"] == 0
        assert run["tokens_per_s"] > 0
        assert run["goodput_requests_per_s"] == pytest.approx(run["requests_per_s"])
        assert {sample["output_tokens"] for sample in run["samples"]} == {4}
    assert len(found["ratios"]) == 4
    assert "<svg" in (tmp_path / "one.html").read_text(encoding="utf-8")
    assert list((tmp_path / "plots").glob("*.png"))
    bench("two.json", "--blocks", "1")
    command = [sys.executable, "-m", "chancellor.cli", "bench", "compare", *map(str, sorted(tmp_path.glob("*.json")))]
    compared = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(compared.stdout)
