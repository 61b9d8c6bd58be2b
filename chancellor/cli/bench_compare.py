"""`chancellor bench compare`: two JSON files side by side."""

import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chancellor.bench.compare import Change, Difference, Figures, compare, regressions, undecided
from chancellor.bench.report import Report
from chancellor.errors import BenchmarkError

__all__ = ["run"]


def run(old: Path, new: Path, *, as_json: bool, fail_above: float | None) -> None:
    """Print what became faster or slower.

    Args:
        old: a file of `chancellor bench --json`.
        new: a later one.
        as_json: print exactly one JSON object instead of a table.
        fail_above: exit with 1 if a run lost more than this percentage of tokens/s, beyond the noise, or is missing.

    Raises:
        BenchmarkError: `fail_above` is no percentage, or a file is no report.
        SystemExit: a run lost too much, or there is none to say so; everything is printed before.
    """
    if fail_above is not None and not 0.0 <= fail_above < math.inf:
        raise BenchmarkError(f"--fail-above is {fail_above:g}.", hint="Give a percentage of 0 or more, e.g. 5.")
    difference = compare(Report.load(old), Report.load(new))
    lost = [] if fail_above is None else regressions(difference, fail_above)
    if as_json:
        whole = {**difference.model_dump(mode="json"), "fail_above": fail_above}
        for field in ("only_old", "only_new"):
            whole[field] = [key._asdict() for key in getattr(difference, field)]
        whole["regressions"] = [change.model_dump(mode="json") for change in lost]
        unclear = [] if fail_above is None else undecided(difference, fail_above)
        whole["undecided"] = [change.model_dump(mode="json") for change in unclear]
        sys.stdout.write(json.dumps(whole, ensure_ascii=False) + "\n")
    else:
        _show(difference, lost, fail_above)
    if lost or (fail_above is not None and difference.gaps):
        raise SystemExit(1)


def _show(difference: Difference, lost: list[Change], fail_above: float | None) -> None:
    console = Console(highlight=False)
    for warning in difference.warnings:
        console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)
    if difference.changes:
        console.print(_table(difference.changes))
    # As a gate, what is only in the old file is told below.
    for which, keys in (("old", difference.only_old if fail_above is None else []), ("new", difference.only_new)):
        for key in keys:
            console.print(f"Only in the {which} file: {escape(key.name)}, {escape(key.load)}", soft_wrap=True)
    if fail_above is None:
        return
    for change in undecided(difference, fail_above):
        console.print(
            f"[yellow]{_title(change)}: {_percent(change.tokens_per_s)} tokens/s, unknown: too few blocks to tell.[/]",
            soft_wrap=True,
        )
    for change in lost:
        console.print(f"[red]{_title(change)}, lost more than {fail_above:g} % of its tokens/s.[/]", soft_wrap=True)
    for gap in difference.gaps:
        console.print(f"[red]{escape(gap)}[/]", soft_wrap=True)


def _title(change: Change) -> str:
    return f"{escape(change.name)}, {escape(change.load)}"


def _table(changes: list[Change]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("target", overflow="fold")
    table.add_column("load", overflow="fold")
    for column in ("tokens/s", "change", "beyond\nnoise", "TTFT\np50", "TTFT\np99", "latency\np50", "errors"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        table.add_row(
            escape(change.name),
            _load_of(change),
            f"{_figure(change.tokens_per_s.old)}→{_figure(change.tokens_per_s.new)}",
            _coloured(change),
            change.beyond_noise,
            _percent(change.ttft_p50_s),
            _percent(change.ttft_p99_s),
            _percent(change.latency_p50_s),
            f"{change.errors.old:.0f}→{change.errors.new:.0f}",
        )
    return table


def _coloured(change: Change) -> str:
    text, percent = _percent(change.tokens_per_s), change.tokens_per_s.change_percent
    if change.beyond_noise != "yes" or not percent:
        return text
    return f"[{'green' if percent > 0 else 'red'}]{text}[/]"


def _load_of(change: Change) -> str:
    """Return the load in few columns."""
    if change.concurrency is not None:
        return f"{escape(change.workload)} c={change.concurrency}"
    return escape(change.load) if change.rate is None else f"{escape(change.workload)} {change.rate:g}/s"


def _percent(figures: Figures) -> str:
    percent = figures.change_percent
    return "-" if percent is None else f"{percent:+,.{0 if abs(percent) >= 100 else 1}f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value >= 1000 else 1}f}"
