"""What two reports differ in, and how the command line tells it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from chancellor.bench.compare import Difference, compare, regressions
from chancellor.cli import bench_compare
from chancellor.errors import BenchmarkError, ReportError
from tests.reports import GPU, MACHINE, make_report, make_run, make_segment


def two(old: Sequence[float | None], new: Sequence[float | None]) -> Difference:
    return compare(make_report(make_run(blocks=old)), make_report(make_run(blocks=new)))


@pytest.mark.parametrize(
    ("old", "new", "percent", "beyond"),
    [
        ((100.0, 102.0), (110.0, 112.2), 10.0, "yes"),
        ((100.0, 102.0), (90.0, 91.8), -10.0, "yes"),
        ((100.0, 110.0), (95.0, 104.5), -5.0, "no"),
        ((100.0,), (50.0,), -50.0, "unknown"),
        ((100.0, 102.0), (50.5,), -50.0, "unknown"),
        ((100.0, 102.0), (None, None), -100.0, "yes"),
        ((None, None), (100.0, 102.0), None, "unknown"),
    ],
)
def test_a_change_and_its_noise(
    old: Sequence[float | None], new: Sequence[float | None], percent: float | None, beyond: str
) -> None:
    (change,) = two(old, new).changes
    assert change.tokens_per_s.change_percent == (None if percent is None else pytest.approx(percent))
    assert change.beyond_noise == beyond


def test_a_block_that_was_cut_short_tells_no_noise() -> None:
    short = make_run(segments=[make_segment(0), make_segment(1, complete=False)])
    (change,) = compare(make_report(make_run()), make_report(short)).changes
    assert change.beyond_noise == "unknown"


def test_latencies_and_errors_are_compared() -> None:
    (change,) = compare(make_report(make_run()), make_report(make_run(slow=1.5, errors=2))).changes
    for figures in (change.ttft_p50_s, change.ttft_p99_s, change.latency_p50_s):
        assert figures.change_percent == pytest.approx(50.0)
    assert (change.errors.old, change.errors.new, change.errors.change_percent) == (0, 2, None)
    (change,) = compare(make_report(make_run(ttft_s=None)), make_report(make_run())).changes
    assert change.ttft_p50_s.change_percent is None


def test_runs_are_matched_by_name_load_and_workload() -> None:
    old = make_report(make_run("graph"), make_run("raw"), make_run("graph", 1))
    new = make_report(make_run("graph", 1), make_run("stock"), make_run("graph", workload="9/9"))
    difference = compare(old, new)
    assert [(change.name, change.concurrency) for change in difference.changes] == [("graph", 1)]
    assert [key.name for key in difference.only_old] == ["graph", "raw"]
    assert [(key.name, key.workload) for key in difference.only_new] == [("stock", "128/64"), ("graph", "9/9")]
    assert any("no run in common" in text for text in compare(make_report(runs=[]), new).warnings)


def test_another_machine_is_told_first() -> None:
    other = MACHINE.model_copy(update={"cores": 16, "gpus": [GPU], "versions": {"chancellor": "0.2.0"}})
    new = make_report(machine=other, settings={"seed": "1", "blocks": 3}, state="interrupted", failures={"raw": "No."})
    first, *others = compare(make_report(), new).warnings
    assert "machines differ" in first
    assert "cores 2 became 16" in first
    assert "Example H100" in first
    text = " ".join(others)
    for words in ("chancellor 0.1.0 became 0.2.0", "seed 0 became 1", "was interrupted", "raw failed: No."):
        assert words in text


def test_alike_reports_need_no_warning() -> None:
    report = make_report(make_run(blocks=[100.0, 101.0, 102.0, 103.0]))
    assert compare(report, report).warnings == []
    assert "33 %" in two((100.0, 102.0), (100.0, 102.0)).warnings[0]


def test_regressions_are_beyond_threshold_and_noise() -> None:
    clear, noisy, single = two((100.0, 101.0), (90.0, 91.0)), two((100.0, 120.0), (80.0, 101.0)), two((9.0,), (1.0,))
    assert len(regressions(clear, 5.0)) == 1
    assert regressions(clear, 15.0) == []
    assert regressions(noisy, 5.0) == []
    assert regressions(single, 5.0) == []
    assert regressions(two((90.0, 91.0), (100.0, 101.0)), 0.0) == []
    assert len(regressions(two((100.0, 101.0), (None, None)), 5.0)) == 1


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    make_report(make_run(blocks=(100.0, 101.0)), make_run("[bold]", 1)).save(old)
    machine = MACHINE.model_copy(update={"cpu": "Another [red]CPU"})
    make_report(make_run(blocks=(80.0, 81.0)), make_run("[bold]", 2), machine=machine).save(new)
    return old, new


def test_a_table_of_changes(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bench_compare.run(*files, as_json=False, fail_above=None)
    printed = capsys.readouterr().out
    assert printed.startswith("Note: The machines differ")
    for words in ("Another [red]CPU", "128/64 c=8", "100.5→80.5", "-19.9 %", "yes", "Only in the old file: [bold],"):
        assert words in printed
    assert max(map(len, printed[printed.index("target ") :].splitlines()[:2])) <= 80


def test_changes_as_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_compare.run(*files, as_json=True, fail_above=5.0)
    assert ended.value.code == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["changes"][0]["tokens_per_s"]["change_percent"] == pytest.approx(-19.9, abs=0.01)
    assert printed["regressions"] == printed["changes"]
    assert printed["only_old"] == [{"name": "[bold]", "load": "128/64 at concurrency 1", "workload": "128/64"}]
    assert "machines differ" in printed["warnings"][0]
    assert printed["fail_above"] == 5.0


def test_failing_above_a_loss(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    same = make_report(make_run(blocks=(80.0, 81.0)), make_run("[bold]", 1))
    same.save(files[1])
    bench_compare.run(*files, as_json=False, fail_above=25.0)
    with pytest.raises(SystemExit):
        bench_compare.run(*files, as_json=False, fail_above=5.0)
    assert "graph, 128/64 at concurrency 8, lost more than 5 % of its tokens/s." in capsys.readouterr().out
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BenchmarkError, match="--fail-above"):
            bench_compare.run(*files, as_json=False, fail_above=wrong)
    with pytest.raises(ReportError):
        bench_compare.run(files[0], files[0].with_name("missing.json"), as_json=False, fail_above=None)
