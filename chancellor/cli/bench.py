"""`chancellor bench`: live progress, a table, a JSON file, a page."""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from chancellor import progress
from chancellor.catalog import Catalog, ModelSpec
from chancellor.cli.terminal import Terminal, terminal
from chancellor.errors import BenchmarkError

if TYPE_CHECKING:
    from chancellor.bench.load import Load
    from chancellor.bench.monitor import Event
    from chancellor.bench.report import Comparison, Report, Run
    from chancellor.bench.statistics import Percentiles
    from chancellor.bench.workload import Workload

__all__ = ["BenchOptions", "run"]

_LOAD: Final = re.compile(r"(\d+)/(\d+)@(\d+(?:,\d+)*)")


@dataclass
class BenchOptions:
    """The command's options, as they were given."""

    config: Path | None = None
    model: str | None = None
    shape: str | None = None
    scheme: str | None = None
    target: str = "graph"
    against: list[str] = field(default_factory=list)
    concurrency: str | None = None
    rate: str | None = None
    requests: int | None = None
    max_seconds: float | None = None
    input_tokens: int = 128
    output_tokens: int = 64
    vary: float = 0.0
    questions: Path | None = None
    agent: bool = False
    loads: list[str] = field(default_factory=list)
    blocks: int = 2
    warmup: int | None = None
    seed: int = 0
    stream: bool = True
    slo: list[str] = field(default_factory=list)
    start_timeout: float = 900.0
    json: Path | None = None
    report: Path | None = None
    plots: Path | None = None


def run(options: BenchOptions) -> None:
    """Measure, show, and write what was asked for; after an interrupt too."""
    from chancellor.bench import PerformanceMonitor
    from chancellor.bench.against import make_targets
    from chancellor.bench.objectives import Objectives
    from chancellor.engines import default_pool

    loads, objectives = _loads(options), Objectives.parse(options.slo)
    catalog, model = _catalog(options)
    for path in (options.json, options.report, options.plots):
        _check_writable(path)
    with terminal() as user:
        targets = make_targets(options.target, options.against, catalog=catalog, model=model, pool=default_pool())
        show = _Progress(user, len(loads) * options.blocks * len(targets))
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
            on_report=partial(_save, options.json),
        )
        try:
            with show, progress.listening(show.step):
                monitor.run()
        finally:
            # Also when interrupted: what was measured is kept, and shown as what it is.
            _deliver(user, monitor.report, options)


def _save(path: Path | None, report: "Report") -> None:
    if path is not None:
        report.save(path)


def _deliver(user: Terminal, report: "Report", options: BenchOptions) -> None:
    if not report.runs:
        user.err.print("Nothing was measured, so nothing is written.")
        return
    user.out.print(_table(report))
    if report.ratios:
        user.out.print(_ratios(report))
    for name, reason in report.failures.items():
        user.out.print(f"[red]{escape(name)} did not start:[/] {escape(reason)}")
    user.out.print(escape(report.machine.line()), style="dim")
    if report.state != "complete":
        user.out.print(f"[yellow]The run was {report.state}: this is what it had measured.[/]")
    if options.json:
        report.save(options.json)
    if options.report:
        from chancellor.bench.page import write

        write(report, options.report)
    if options.plots:
        from chancellor.bench.plots import save_pngs

        save_pngs(report, options.plots)
    written = [str(path) for path in (options.json, options.report, options.plots) if path]
    if written:
        user.err.print(f"Written: {escape(', '.join(written))}")


def _catalog(options: BenchOptions) -> tuple[Catalog, str | None]:
    catalog = Catalog.load(options.config)
    if options.shape is None:
        if options.scheme is not None:
            raise BenchmarkError("--scheme goes with --shape.", hint="A model of the catalog has its own scheme.")
        return catalog, options.model
    if options.model is not None:
        raise BenchmarkError("--model and --shape name two models.", hint="Give one of them.")
    name = Path(options.shape).stem if options.shape.endswith(".json") else options.shape
    spec = ModelSpec(name=name, source=f"shape:{options.shape}", trinity=100.0, scheme=options.scheme)
    return Catalog([spec, *catalog.values()], minimum_trinity_score=catalog.minimum_trinity_score), name


def _loads(options: BenchOptions) -> "list[Load]":
    from chancellor.bench.load import Load
    from chancellor.bench.workload import AgentTurns, Questions, Synthetic

    if options.loads:
        made = []
        for text in options.loads:
            if (parts := _LOAD.fullmatch(text.replace(" ", ""))) is None:
                raise BenchmarkError(f"{text!r} is no load.", hint="Give INPUT/OUTPUT@CONCURRENCIES: 128/64@1,8.")
            workload: Workload = Synthetic(int(parts[1]), int(parts[2]), vary=options.vary)
            made += [
                Load(workload, concurrency=int(number), requests=options.requests, max_s=options.max_seconds)
                for number in parts[3].split(",")
            ]
        return made
    if options.questions is not None:
        workload = Questions.read(options.questions, max_tokens=options.output_tokens)
    elif options.agent:
        workload = AgentTurns()
    else:
        workload = Synthetic(options.input_tokens, options.output_tokens, vary=options.vary)
    rates = _numbers("--rate", options.rate)
    concurrencies = _numbers("--concurrency", options.concurrency or ("" if rates else "1,8"))
    if any(number != int(number) for number in concurrencies):
        raise BenchmarkError("A concurrency is a whole number.", hint="Give e.g. --concurrency 1,8,32.")
    return [
        *(
            Load(workload, concurrency=int(number), requests=options.requests, max_s=options.max_seconds)
            for number in concurrencies
        ),
        *(Load(workload, rate=rate, requests=options.requests, max_s=options.max_seconds) for rate in rates),
    ]


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise BenchmarkError(
            f"{option} {text!r} holds something else than numbers.", hint="Give e.g. 1,8,32."
        ) from None


def _check_writable(path: Path | None) -> None:
    """Fail before the measuring, not after."""
    if path is None:
        return
    if path.is_dir() and path.suffix:
        raise BenchmarkError(f"{path} is a folder.", hint="Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error}.", hint="Name another place.") from error


class _Progress:
    """A bar for the whole, a bar for the segment; plain lines where stderr is no terminal."""

    def __init__(self, user: Terminal, segments: int) -> None:
        self._user = user
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=user.err,
            transient=True,
        )
        self._live = user.err.is_terminal
        self._whole: TaskID = self._bars.add_task("segments", total=segments)
        self._segment: TaskID = self._bars.add_task("starting", total=None)

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def step(self, step: progress.Progress) -> None:
        """Show what a starting engine does."""
        self._bars.update(self._segment, description=escape(f"{step['model']}: {step['message']}"))

    def __call__(self, event: "Event") -> None:
        """Show what happened."""
        name = escape(event.target)
        if event.kind == "sample":
            self._bars.update(self._segment, completed=event.completed)
        elif event.kind == "segment":
            description = f"{name}, {escape(event.load)}"
            self._bars.update(self._segment, description=description, completed=0, total=event.total)
        elif event.kind == "starting":
            self._bars.update(self._segment, description=f"{name}: starting", completed=0, total=None)
        else:
            if event.kind == "measured":
                self._bars.advance(self._whole)
            text = (
                f"{name}: {event.kind} after {event.message}"
                if event.kind == "started"
                else (
                    f"{name}, {escape(event.load)}: {event.message}"
                    if event.kind == "measured"
                    else f"[red]{name} did not start:[/] {escape(event.message)}"
                )
            )
            self._user.err.print(f"[dim]{text}[/]")


def _table(report: "Report") -> Table:
    table = Table(title="tokens/s are output tokens; times are p50 / p99", title_style="dim", title_justify="left")
    for heading in ("target", "load"):
        table.add_column(heading)
    for heading in ("tokens/s", "TTFT ms", "ITL ms", "latency s", "errors"):
        table.add_column(heading, justify="right")
    for run in report.runs:
        table.add_row(
            escape(run.name),
            _load_of(run),
            _figure(run.tokens_per_s, ",.1f"),
            _pair(run.ttft_s, 1000, ",.0f"),
            _pair(run.itl_s, 1000, ",.1f"),
            _pair(run.latency_s, 1, ",.2f"),
            f"[red]{run.errors}[/]" if run.errors else "0",
        )
    return table


def _ratios(report: "Report") -> Table:
    subject = escape(report.ratios[0].subject)
    table = Table(title=f"tokens/s of {subject} over the others", title_style="dim", title_justify="left")
    for heading in ("against", "load"):
        table.add_column(heading)
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
