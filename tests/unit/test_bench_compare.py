"""When `bench compare` is a gate: what it lets pass, and what it does not."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chancellor.bench.compare import compare, regressions, undecided
from chancellor.bench.report import Report, Run
from chancellor.bench.statistics import beyond_chance
from chancellor.cli import bench_compare
from tests.reports import make_report, make_run, silent_run

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def gate(folder: Path, old: Report, new: Report, *, as_json: bool = False, fail_above: float | None = 5.0) -> int:
    """Return the exit code."""
    old.save(folder / "old.json")
    new.save(folder / "new.json")
    try:
        bench_compare.run(folder / "old.json", folder / "new.json", as_json=as_json, fail_above=fail_above)
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


def without_tokens(run: Run) -> Run:
    return run.model_copy(update={"tokens_per_s": None})


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (make_report(make_run("graph", 1)), "The reports have no run in common."),
        (make_report(runs=[]), "The reports have no run in common."),
        (make_report(make_run()), "raw, 128/64 at concurrency 8, is missing in the new report."),
        (
            make_report(make_run(), failures={"raw": "There is no kernel."}),
            "raw, 128/64 at concurrency 8, is missing in the new report: There is no kernel.",
        ),
        (
            make_report(
                make_run(),
                make_run("raw", blocks=(100.0, 104.0)),
                failures={"raw, 128/64 at concurrency 8, block 2": "Out of memory."},
            ),
            "raw, 128/64 at concurrency 8, has fewer blocks in the new report: Out of memory.",
        ),
        (make_report(make_run(), make_run("raw"), state="interrupted"), "The new benchmark was interrupted, so that"),
        (make_report(make_run(), make_run("raw"), state="failed"), "The new benchmark failed, so that"),
        (make_report(make_run(), without_tokens(make_run("raw"))), "raw, 128/64 at concurrency 8, has no tokens/s"),
        (make_report(make_run(), silent_run("raw")), "raw, 128/64 at concurrency 8, lost more than 5 %"),
    ],
)
def test_what_is_not_there_does_not_pass(
    new: Report, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_report(make_run(), make_run("raw"))
    assert gate(tmp_path, old, new) == 1
    assert words in capsys.readouterr().out
    assert gate(tmp_path, old, new, fail_above=None) == 0  # only a gate can be shut


def test_what_failed_in_both_and_what_is_new_passes(tmp_path: Path) -> None:
    failures = {"stock": "There is no kernel."}
    old = make_report(make_run(), failures=failures)
    assert gate(tmp_path, old, make_report(make_run(), make_run("raw"), failures=failures)) == 0


def test_gaps_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, make_report(make_run(), make_run("raw")), make_report(make_run()), as_json=True) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["gaps"] == ["raw, 128/64 at concurrency 8, is missing in the new report."]
    assert (printed["regressions"], printed["undecided"]) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "beyond"),
    [
        ((100.0, 103.0), (90.0, 95.0), "unknown"),  # equal speeds often look so
        ((100.0, 101.0), (90.0, 91.0), "yes"),  # far away, for their scatter
        ((100.0, 103.0), (50.0, 53.0), "yes"),
        ((100.0, 103.0, 106.0, 101.0), (90.0, 95.0, 99.0, 99.5), "yes"),  # rare by their number alone
        ((100.0, 103.0), (90.0, 101.0), "no"),
        ((100.0,), (50.0,), "unknown"),
    ],
)
def test_few_blocks_tell_only_large_changes(
    old: Sequence[float], new: Sequence[float], beyond: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = make_report(make_run(blocks=old)), make_report(make_run(blocks=new))
    difference = compare(*reports)
    assert difference.changes[0].beyond_noise == beyond
    assert len(regressions(difference, 5.0)) == (beyond == "yes")
    assert len(undecided(difference, 5.0)) == (beyond == "unknown")
    assert undecided(difference, 60.0) == []
    assert gate(tmp_path, *reports) == (beyond == "yes")
    assert ("unknown: too few blocks to tell" in capsys.readouterr().out) == (beyond == "unknown")


def test_two_blocks_of_equal_speeds_seldom_shut_the_gate() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(400):
        old, new = ([rng.gauss(100, 3) for _ in range(2)] for _ in range(2))
        difference = compare(make_report(make_run(blocks=old)), make_report(make_run(blocks=new)))
        found += difference.changes[0].beyond_noise == "yes"
    assert found / 400 < 0.08  # a third of them have ranges that miss each other


def test_a_t_test() -> None:
    assert beyond_chance((1.0, 2.0), (5.0, 6.0))  # t is 5.66, and 4.30 the limit
    assert not beyond_chance((1.0, 2.0), (4.0, 5.0))  # 4.24
    assert beyond_chance((1.0, 1.0), (2.0, 2.0))
    assert not beyond_chance((1.0, 1.0), (1.0, 1.0))
    for few in (((1.0,), (2.0,)), ((), (1.0, 2.0, 3.0))):
        with pytest.raises(ValueError, match="three values"):
            beyond_chance(*few)


def settings(*labels: str, blocks: int = 4, **loads: Any) -> dict[str, Any]:
    return {
        "targets": {label: f"graph over vllm: {label}" for label in labels},
        "loads": {f"128/64 at concurrency {load}": {"requests": count} for load, count in loads.items()},
        "prefix_cache_emptied": dict.fromkeys(labels, True),
        "blocks": blocks,
    }


def test_settings_of_runs_that_only_one_report_has_are_no_difference() -> None:
    def warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        run = make_run(blocks=(100.0, 101.0, 102.0, 103.0))
        return compare(make_report(run, settings=old), make_report(run, settings=new)).warnings

    assert warnings(settings("graph", c1=6), settings("graph", "raw", c8=16)) == []
    assert warnings({**settings("graph"), "loads": ["128/64"]}, settings("graph", c1=6)) == []  # as it was once
    old, new = settings("graph", c1=6), settings("graph", "raw", c1=12, c8=16, blocks=6)
    new["targets"]["graph"] = "graph over transformers: graph"
    (text,) = warnings(old, new)
    for words in ("blocks 4 became 6", "concurrency c1.requests 6 became 12", "over vllm: graph became graph over tr"):
        assert words in text
    assert "raw" not in text
    assert "c8" not in text


@pytest.mark.parametrize(("state", "words"), [("failed", "benchmark failed."), ("interrupted", "was interrupted.")])
def test_how_a_benchmark_ended(state: str, words: str) -> None:
    (ended, *_) = compare(make_report(), make_report(state=state)).warnings
    assert words in ended


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_results_in_the_repository_can_be_read(path: Path) -> None:
    if "runs" in json.loads(path.read_text(encoding="utf-8")):  # else of a script under bench/
        assert Report.load(path).runs
