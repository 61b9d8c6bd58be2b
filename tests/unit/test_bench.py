"""The monitor: segments, failures, and what it sums up."""

import asyncio
import json
from pathlib import Path

import pytest

from chancellor import errors
from chancellor.bench import AgentTurns, Event, Load, Objectives, PerformanceMonitor, Report, Synthetic
from chancellor.bench.report import Sample
from chancellor.bench.targets.base import Ask, Reply, Stopwatch
from tests.scripted import Scripted, questions


def test_segments_alternate_forwards_and_backwards() -> None:
    journal: list[str] = []
    targets = [Scripted("a", journal), Scripted("b", journal)]
    PerformanceMonitor(targets, [questions(concurrency=1, requests=2)], blocks=4, warmup=0).run()
    blocks = [name for name in journal if len(name) == 1]
    assert journal[:2] + journal[-2:] == ["start a", "start b", "close a", "close b"]
    assert "".join(blocks) == "aabb" + "bbaa" + "aabb" + "bbaa"


def test_warm_up_is_not_counted() -> None:
    target = Scripted("a", [])
    report = PerformanceMonitor([target], [questions(concurrency=2, requests=4)], blocks=1, warmup=3).run()
    assert len(target.asked) == 7
    assert report.runs[0].requests == 4


def test_errors_are_counted_by_kind_and_leave_the_rest_alone() -> None:
    target = Scripted("a", [], fail_every=4)
    report = PerformanceMonitor([target], [questions(concurrency=2, requests=8)], blocks=1, warmup=0).run()
    run = report.runs[0]
    assert (run.requests, run.errors, run.error_kinds) == (6, 2, {"GenerationError": 2})
    assert [sample.error for sample in run.samples if sample.error] == ["GenerationError: It did not want to."] * 2
    assert run.latency_s is not None
    assert run.latency_s.n == 6


def test_a_run_that_is_interrupted_keeps_what_it_has() -> None:
    target = Scripted("a", [], delay_s=0.005)

    def stop(event: Event) -> None:
        if event.kind == "sample" and event.block == 1 and event.completed == 3:
            raise KeyboardInterrupt

    bench = PerformanceMonitor([target], [questions(concurrency=1, requests=5)], blocks=3, warmup=0, on_event=stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    report = bench.report
    assert report.state == "interrupted"
    segments = report.runs[0].segments
    assert [(segment.block, segment.requests, segment.complete) for segment in segments] == [
        (0, 5, True),
        (1, 3, False),
    ]
    assert report.runs[0].tokens_per_s is not None
    assert target.journal[-1] == "close a"
    assert Report.model_validate_json(report.model_dump_json(by_alias=True)) == report


def test_the_report_can_be_saved_after_every_segment(tmp_path: Path) -> None:
    seen: list[int] = []
    file = tmp_path / "bench.json"

    def save(report: Report) -> None:
        report.save(file)
        seen.append(sum(len(run.segments) for run in Report.load(file).runs))

    PerformanceMonitor(
        [Scripted("a", []), Scripted("b", [])], [questions(concurrency=1, requests=1)], on_report=save
    ).run()
    assert seen == [1, 2, 3, 4]
    stable = json.loads(file.read_text())
    assert {"machine", "settings", "runs", "ratios"} <= set(stable)
    assert {"name", "concurrency", "requests", "errors", "tokens_per_s", "requests_per_s"} <= set(stable["runs"][0])
    assert {"p50", "p90", "p99"} <= set(stable["runs"][0]["ttft_s"])
    assert {"against", "concurrency", "tokens_per_s_ratio", "spread"} <= set(stable["ratios"][0])


def test_a_target_that_does_not_start_is_a_result_unless_it_is_the_first() -> None:
    class Broken(Scripted):
        async def start(self) -> None:
            raise errors.EngineStartError("There is no kernel for it.")

    report = PerformanceMonitor([Scripted("a", []), Broken("b", [])], [questions(concurrency=1)], blocks=1).run()
    assert report.failures == {"b": "There is no kernel for it."}
    assert report.state == "complete"
    with pytest.raises(errors.EngineStartError):
        PerformanceMonitor([Broken("b", [])], [questions(concurrency=1)]).run()


def test_a_target_that_takes_too_long_to_start_is_given_up() -> None:
    class Slow(Scripted):
        async def start(self) -> None:
            await asyncio.sleep(30)

    slow = Slow("b", [])
    report = PerformanceMonitor(
        [Scripted("a", []), slow], [questions(concurrency=1)], blocks=1, start_timeout_s=0.05
    ).run()
    assert "0.05 s" in report.failures["b"]
    assert slow.journal == ["close b"]


def test_an_agents_turns_follow_one_another() -> None:
    target = Scripted("a", [])
    load = Load(AgentTurns(prefix_tokens=20, turns=3, input_tokens=4, output_tokens=2), concurrency=2, requests=6)
    report = PerformanceMonitor([target], [load], blocks=1, warmup=0).run()
    assert report.runs[0].requests == 6
    assert target.peak == 2
    by_length: dict[int, int] = {}
    for ask in target.asked:
        assert ask.messages[0]["role"] == "system"
        by_length[len(ask.messages)] = by_length.get(len(ask.messages), 0) + 1
    assert by_length == {2: 2, 4: 2, 6: 2}
    assert len({ask.messages[0]["content"] for ask in target.asked}) == 1
    assert target.asked[-1].messages[2] == {"role": "assistant", "content": "answer"}


def test_turns_after_a_failed_one_are_counted() -> None:
    target = Scripted("a", [], fail_every=2)
    load = Load(AgentTurns(prefix_tokens=8, turns=4, input_tokens=2, output_tokens=2), concurrency=1, requests=4)
    run = PerformanceMonitor([target], [load], blocks=1, warmup=0).run().runs[0]
    assert (run.requests, run.errors) == (1, 3)
    assert run.error_kinds == {"GenerationError": 1, "Skipped": 2}


def test_a_target_that_fails_between_segments_costs_only_its_own() -> None:
    class Gone(Scripted):
        begun = 0

        async def begin(self) -> bool:
            self.begun += 1
            if self.begun > 2:  # twice for the first segment
                raise errors.BenchmarkError("The server is gone.")
            return True

    targets = [Scripted("a", []), Gone("b", [])]
    report = PerformanceMonitor(targets, [questions(concurrency=1, requests=2)], blocks=3, warmup=0).run()
    assert report.state == "complete"
    assert {run.name: len(run.segments) for run in report.runs} == {"a": 3, "b": 1}
    assert len(report.failures) == 2
    assert all("server is gone" in reason for reason in report.failures.values())
    assert len(report.ratios[0].pairs) == 1


def test_loads_and_targets_that_would_be_mixed_up_are_refused() -> None:
    with pytest.raises(errors.BenchmarkError, match="Two loads are called"):
        PerformanceMonitor([Scripted("a", [])], [questions(concurrency=1), questions(concurrency=1, requests=9)])
    free = Scripted("b", [])
    free.fixed_length = False
    with pytest.raises(errors.BenchmarkError, match="ends its answers when it likes"):
        PerformanceMonitor([Scripted("a", []), free], [Load(Synthetic(8, 8), concurrency=1)])


def test_what_is_partly_unknown_is_unknown() -> None:
    class Forgetful(Scripted):
        async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
            self.asked.append(ask)
            return Reply("x", 1, None if len(self.asked) % 2 else 7)

    run = PerformanceMonitor(
        [Forgetful("a", [])], [questions(concurrency=1, requests=4)], blocks=1, warmup=0, stream=False
    ).run()
    assert run.runs[0].requests == 4
    assert run.runs[0].tokens_per_s is None
    assert run.runs[0].ttft_s is None


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    def sample(ttft: float | None, latency: float) -> Sample:
        return Sample(block=0, index=0, start_s=0, latency_s=latency, ttft_s=ttft, output_tokens=11)

    limits = Objectives.parse(["ttft=0.5", "tpot=0.1"])
    assert limits.kept([sample(0.5, 1.5), sample(0.4, 1.5), sample(0.6, 0.7), sample(None, 0.1)]) == 1
    assert Objectives().kept([sample(0.5, 1.5)]) is None
    assert limits.kept([sample(None, 1.0), sample(None, 0.1)]) is None  # nobody measured it
    assert limits.kept([]) == 0
    one_token = Sample(block=0, index=0, start_s=0, latency_s=0.3, ttft_s=0.3, output_tokens=1)
    assert limits.kept([one_token]) == 1
    for wrong in ("ttft", "ttft=", "ttft=-1", "speed=3", "ttft=nan", "ttft=0"):
        with pytest.raises(errors.BenchmarkError, match="no latency target"):
            Objectives.parse([wrong])
