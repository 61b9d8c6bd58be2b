"""A benchmark as one HTML file that needs nothing else: no network, no script, no font."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from chancellor.bench import plots
from chancellor.bench.report import Comparison, Report, Run
from chancellor.bench.statistics import Percentiles
from chancellor.errors import MissingDependencyError, ReportError

__all__ = ["render", "write"]

_Row = TypeVar("_Row", Run, Comparison)
_NOTHING: Final = "\N{EN DASH}"
_ENOUGH_BLOCKS: Final = 4


class Column(NamedTuple):
    """A figure of a run, as a table shows it."""

    label: str
    cell: Callable[[Run], str]


class Plot(NamedTuple):
    """A figure on the page."""

    title: str
    svg: str
    rows: int
    """How many usual ones it is high."""


class Target(NamedTuple):
    """What the headline says about one target."""

    name: str
    detail: str
    colour: str
    best: Run | None
    """The run with the most tokens/s."""


def render(report: Report) -> str:
    """Return the page. Whatever comes from the report is escaped.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise MissingDependencyError.of("jinja2", "bench") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, ratio=_ratio, verdict=_verdict)
    source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    colours = plots.colours(report)
    return environment.from_string(source).render(
        report=report,
        nothing=_NOTHING,
        warnings=list(_warnings(report)),
        targets=list(_targets(report, colours)),
        colours=colours,
        loads=_by_load(report.runs),
        ratios=_by_load(report.ratios),
        tables=_TABLES,
        # matplotlib escapes what is written into an SVG.
        plots=[
            Plot(figure.get_suptitle(), markupsafe.Markup(plots.svg(figure)), round(figure.get_figheight() / 3.7) or 1)  # noqa: S704
            for figure in plots.figures(report).values()
        ],
        facts=list(dict.fromkeys(fact for facts in report.facts.values() for fact in facts)),
        settings=list(_flat(report.settings)),
    )


def write(report: Report, path: Path) -> None:
    """Write the page; an older one is replaced only by a complete one.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
        ReportError: it cannot be written.
    """
    page = render(report).encode("utf-8", errors="replace")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(page)
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):  # it may be for the same reason that there is nothing to remove
            unfinished.unlink()
        raise ReportError(f"The page {path} cannot be written: {error}.", hint="Name another place.") from error


def _number(value: float | None, unit: str = "") -> str:
    """Write three significant digits, or all those before the point."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}{unit}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}{unit}"


def _ratio(value: float | None) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:,.3f}"


def _verdict(ratio: Comparison) -> str:
    """Say what a ratio and its spread mean."""
    if ratio.spread is None:
        return "one block: noise unknown"
    if ratio.low <= 1.0 <= ratio.high:
        return "within noise"
    if len(ratio.pairs) < _ENOUGH_BLOCKS:
        return "too few blocks to tell"
    if ratio.low > 1 and ratio.tokens_per_s_ratio >= 2:
        return f"{ratio.tokens_per_s_ratio:.1f} times as fast"
    change = abs(ratio.tokens_per_s_ratio - 1)
    return f"{change * 100:.1f} % {'faster' if ratio.low > 1 else 'slower'}"


def _warnings(report: Report) -> Iterator[str]:
    if report.state == "interrupted":
        yield "The benchmark was interrupted: what had been measured by then is here, and the rest is missing."
    if report.state == "failed":
        yield "The benchmark failed: what had been measured by then is here, and the rest is missing."
    for name, reason in report.failures.items():
        yield f"{name} failed: {reason}"
    errors, asked = sum(run.errors for run in report.runs), sum(run.errors + run.requests for run in report.runs)
    if errors:
        yield f"{errors:,} of {asked:,} requests failed. Latencies are those of the answered requests only."
    silent = [f"{run.name} ({run.load})" for run in report.runs if not run.requests]
    if silent:
        yield f"No request was answered by {', '.join(silent)}."
    short = sum(not block.complete for run in report.runs for block in run.segments)
    if short:
        yield f"{short} of {sum(len(run.segments) for run in report.runs)} blocks were cut short."
    if not report.runs:
        yield "Nothing was measured."


def _by_load(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.load, []).append(row)
    return groups


def _targets(report: Report, colours: Mapping[str, str]) -> Iterator[Target]:
    for name, colour in colours.items():
        runs = [run for run in report.runs if run.name == name]
        fast = [run for run in runs if run.tokens_per_s]
        yield Target(name, runs[0].detail, colour, max(fast, key=lambda run: run.tokens_per_s or 0.0, default=None))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None:
            yield f"{prefix}{key}", _NOTHING
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield f"{prefix}{key}", "; ".join(value)
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(label: str, field: str, scale: float = 1.0, unit: str = "") -> Column:
    def cell(run: Run) -> str:
        value: float | None = getattr(run, field)
        return _number(value if value is None or scale == 1.0 else value * scale, unit)

    return Column(label, cell)


def _mean(label: str, field: str) -> Column:
    return Column(label, lambda run: _number(found.mean if (found := getattr(run, field)) else None))


def _percentiles(field: str) -> list[Column]:
    def cell(run: Run, share: str) -> str:
        found: Percentiles | None = getattr(run, field)
        return _number(getattr(found, share) * 1000) if found else _NOTHING

    return [Column(share, partial(cell, share=share)) for share in ("p50", "p90", "p99")]


def _blocks(run: Run) -> str:
    known = [block.tokens_per_s for block in run.segments if block.tokens_per_s is not None]
    return f"{_number(min(known))} to {_number(max(known))}" if len(known) > 1 else _NOTHING


_TABLES: Final[dict[str, dict[str, list[Column]]]] = {
    "Throughput and errors": {
        "output tokens": [
            _plain("per s", "tokens_per_s"),
            Column("per s, by block", _blocks),
            _mean("an answer", "output_tokens"),
        ],
        "input tokens": [_plain("per s", "input_tokens_per_s"), _mean("a request", "input_tokens")],
        "requests": [
            _plain("per s", "requests_per_s"),
            _plain("goodput per s", "goodput_requests_per_s"),
            _plain("answered", "requests"),
            _plain("errors", "errors"),
        ],
        "took": [_plain("s", "duration_s")],
    },
    "Latency in milliseconds": {
        "TTFT": _percentiles("ttft_s"),
        "ITL": _percentiles("itl_s"),
        "TPOT": _percentiles("tpot_s"),
        "latency": _percentiles("latency_s"),
        "queue": _percentiles("queue_s"),
    },
    "Engine and machine": {
        "engine": [
            _plain("peak batch", "peak_running"),
            _plain("KV cache", "kv_cache_usage", 100, " %"),
            _plain("prefix hits", "prefix_cache_hit_rate", 100, " %"),
            _plain("preemptions", "preemptions"),
        ],
        "CPU": [_plain("busy cores", "cpu_utilization"), _plain("memory, MiB", "process_memory_mib")],
        "GPU": [
            _plain("memory, MiB", "gpu_memory_mib"),
            _plain("busy", "gpu_utilization", 100, " %"),
            _plain("energy, J", "gpu_energy_j"),
            _plain("J/token", "joules_per_token"),
        ],
    },
}
