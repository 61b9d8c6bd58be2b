"""`chancellor bench`: live progress, a table, a JSON file, a page."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from chancellor import progress
from chancellor.cli.bench_options import BenchOptions, catalog_of, check_writable, loads_of
from chancellor.cli.bench_progress import BenchProgress
from chancellor.cli.terminal import Terminal, terminal
from chancellor.errors import BenchmarkError, ReportError

if TYPE_CHECKING:
    from chancellor.bench.report import Comparison, Report, Run
    from chancellor.bench.statistics import Percentiles

__all__ = ["run"]


def run(options: BenchOptions) -> None:
    """Measure, show, and write what was asked for; after an interrupt too."""
    from chancellor.bench import PerformanceMonitor
    from chancellor.bench.against import make_targets
    from chancellor.bench.objectives import Objectives
    from chancellor.engines import default_pool

    loads, objectives = loads_of(options), Objectives.parse(options.slo)
    catalog, model = catalog_of(options)
    for path in (options.json, options.report, options.plots / "throughput.png" if options.plots else None):
        check_writable(path)
    writers = _writers(options)  # imported now: what is missing shows before the measuring
    targets = make_targets(options.target, options.against, catalog=catalog, model=model, pool=default_pool())
    with terminal() as user:
        show = BenchProgress(user, len(loads) * options.blocks * len(targets), subject=targets[0].name)
        monitor = PerformanceMonitor(
            targets,
            loads,
            blocks=options.blocks,
            warmup=options.warmup,
            stream=options.stream,
            seed=options.seed,
            objectives=objectives,
            start_timeout_s=options.start_timeout,
            on_event=show,
            on_report=partial(_save, user, options.json),
        )
        try:
            with show, progress.listening(show.step):
                monitor.run()
        finally:
            # Also when interrupted: what was measured is kept, and shown as what it is.
            _deliver(user, monitor.report, writers)
        if not monitor.report.runs:
            raise BenchmarkError("Nothing was measured.", hint="The failures above say why.")


def _writers(options: BenchOptions) -> "dict[Path, Callable[[Report], object]]":
    """Return what writes each file that was asked for."""
    from chancellor.bench.canvas import require_matplotlib

    writers: dict[Path, Callable[[Report], object]] = {}
    if (file := options.json) is not None:
        writers[file] = lambda report: report.save(file)
    if (page := options.report) is not None:
        from chancellor.bench.page import write

        writers[page] = lambda report: write(report, page)
    if (folder := options.plots) is not None:
        from chancellor.bench.plots import save_pngs

        writers[folder] = lambda report: save_pngs(report, folder)
    if options.report or options.plots:
        require_matplotlib()
    return writers


def _save(user: Terminal, path: Path | None, report: "Report") -> None:
    if path is not None:
        try:
            report.save(path)
        except ReportError as error:  # the measuring goes on; at the end it is tried once more
            user.err.print(f"[yellow]{escape(error.message)}[/]")


def _deliver(user: Terminal, report: "Report", writers: "dict[Path, Callable[[Report], object]]") -> None:
    if not report.runs:  # what failed was said when it did
        return
    user.out.print(_table(report))
    if report.ratios:
        user.out.print(_ratios(report))
    if report.failures:
        user.out.print(f"[red]Failed, for reasons given above:[/] {escape('; '.join(report.failures))}")
    user.out.print(escape(report.machine.line()), style="dim")
    if report.state != "complete":
        ended = "failed" if report.state == "failed" else "was interrupted"
        user.out.print(f"[yellow]The run {ended}: this is what it had measured.[/]")
    written = []
    for path, write in writers.items():
        try:
            write(report)
        except ReportError as error:  # the others are written all the same
            user.err.print(f"[red]{escape(error.message)}[/]")
        else:
            written.append(str(path))
    if written:
        user.err.print(f"Written: {escape(', '.join(written))}")


def _table(report: "Report") -> Table:
    goodput = bool(report.settings.get("objectives"))
    title = "tokens/s are output tokens; times are p50 / p99"
    if goodput:
        title += "; goodput: requests/s that kept every --slo"
    # Without lines, so that 80 columns are enough for most.
    table = Table(title=title, title_style="dim", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for heading in ("target", "load"):
        table.add_column(heading, overflow="fold")
    for heading in ("tokens/s", "TTFT ms", "ITL ms", "latency s", *(["goodput"] if goodput else []), "errors"):
        table.add_column(heading, justify="right", min_width=min(len(heading), 8))
    for run in report.runs:
        table.add_row(
            escape(run.name),
            _load_of(run),
            _figure(run.tokens_per_s, ",.1f"),
            _pair(run.ttft_s, 1000, ",.0f"),
            _pair(run.itl_s, 1000, ",.1f"),
            _pair(run.latency_s, 1, ",.2f"),
            *([_figure(run.goodput_requests_per_s, ",.2f")] if goodput else []),
            f"[red]{run.errors}[/]" if run.errors else "0",
        )
    return table


def _ratios(report: "Report") -> Table:
    subject = escape(report.ratios[0].subject)
    title = f"tokens/s of {subject} over the others"
    table = Table(title=title, title_style="dim", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for heading in ("against", "load"):
        table.add_column(heading, overflow="fold")
    for heading in ("ratio", "from", "to"):
        table.add_column(heading, justify="right")
    for ratio in report.ratios:
        values = (ratio.tokens_per_s_ratio, ratio.low, ratio.high)
        table.add_row(escape(ratio.against), _load_of(ratio), *(f"{value:.3f}" for value in values))
    return table


def _load_of(run: "Run | Comparison") -> str:
    """Return the load in few columns."""
    how = f"c={run.concurrency}" if run.concurrency is not None else f"{run.rate:g}/s"
    return f"{escape(run.workload)} {how}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pair(values: "Percentiles | None", scale: float, form: str) -> str:
    return "-" if values is None else f"{format(values.p50 * scale, form)} / {format(values.p99 * scale, form)}"
