"""A benchmark's plots."""

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chancellor.bench.canvas import (
    GREY,
    OTHER,
    Panel,
    canvas,
    finite,
    heights,
    in_unit,
    looks_of,
    panels,
    short,
    styled,
)
from chancellor.bench.report import Report, Run
from chancellor.errors import ReportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["colours", "figures", "save_pngs", "svg"]


def colours(report: Report) -> dict[str, str]:
    """Return each target's colour, the same in all plots."""
    return {name: colour for name, (colour, _) in looks_of(report).items()}


def figures(report: Report) -> dict[str, "Figure"]:
    """Draw all plots that there is data for, by name. With several workloads the names are numbered.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with styled():
        parts = list(panels(report))
        drawn = {}
        for number, panel in enumerate(parts, 1):
            for name, draw in _PLOTS.items():
                if figure := draw(panel):
                    drawn[f"{name}-{number}" if len(parts) > 1 else name] = figure
        if figure := _ratios(report):
            drawn = {"ratios": figure, **drawn}
        for name, figure in drawn.items():
            figure.set_label(name)
        return drawn


def save_pngs(report: Report, folder: Path) -> list[Path]:
    """Write every plot as NAME.png into the folder, which is made.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ReportError: they cannot be written.
    """
    paths = []
    for name, figure in figures(report).items():
        path, image = folder / f"{name}.png", io.BytesIO()
        with styled():
            figure.savefig(image, format="png", dpi=160, metadata={"Software": None})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.getvalue())
        except OSError as error:
            raise ReportError(f"The plot {path} cannot be written: {error}.", hint="Name another folder.") from error
        paths.append(path)
    return paths


def svg(figure: "Figure") -> str:
    """Return the plot as an <svg> element for an HTML page, the same text for the same report."""
    drawn = io.StringIO()
    # The salt goes into the ids that are referred to: two plots on a page must not share them.
    with styled({"svg.hashsalt": f"chancellor/{figure.get_label()}"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)


def _throughput(panel: Panel) -> "Figure | None":
    figure, axes = canvas("Throughput", f"{panel.workload}; whiskers: lowest and highest block", panel.shown)
    loads: list[float] = []
    tops = [0.0]
    for name, xs, ys, runs in panel.points(lambda run: run.tokens_per_s):
        blocks = [[block.tokens_per_s for block in run.segments if finite(block.tokens_per_s)] for run in runs]
        below = [max(0.0, y - min(found, default=y)) for y, found in zip(ys, blocks, strict=True)]
        above = [max(0.0, max(found, default=y) - y) for y, found in zip(ys, blocks, strict=True)]
        look: dict[str, Any] = panel.look(figure, axes, name)
        axes.errorbar(xs, ys, (below, above), capsize=3, elinewidth=1, **look)
        loads += xs
        tops += [y + more for y, more in zip(ys, above, strict=True)]
    if not loads:
        return None
    panel.scale(axes, loads)
    heights(axes, "output", "tokens/s", tops)
    return figure


def _percentiles(panel: Panel, field: str, title: str) -> "Figure | None":
    def pick(share: str, run: Run) -> float | None:
        return getattr(getattr(run, field), share, None)

    found = [(share, *points) for share in _SHARES for points in panel.points(partial(pick, share))]
    if not found:
        return None
    figure, axes = canvas(title, panel.workload, panel.shown, _SHARES)
    scale, unit = in_unit(y for _, _, _, ys, _ in found for y in ys)
    for share, name, xs, ys, _ in found:
        axes.plot(xs, [y * scale for y in ys], **{**panel.look(figure, axes, name), **_SHARES[share]})
    panel.scale(axes, [x for _, _, xs, *_ in found for x in xs])
    heights(axes, title.lower(), unit, [y * scale for _, _, _, ys, _ in found for y in ys])
    return figure


def _distribution(panel: Panel) -> "Figure | None":
    found: dict[float, dict[str, list[float]]] = {}
    for name, runs in panel.targets.items():
        for run in runs:
            if latencies := [sample.latency_s for sample in run.samples if finite(sample.latency_s)]:
                found.setdefault(getattr(run, panel.axis), {})[name] = latencies
    if not found:
        return None
    # The highest load that all targets finished requests under, or as many of them as possible.
    load = max(found, key=lambda load: (len(found[load]), load))
    at = f"concurrency {load:g}" if panel.axis == "concurrency" else f"{load:g} requests/s"
    looks = {name: panel.looks[name] for name in found[load]}
    figure, axes = canvas("Distribution of latency", f"{panel.workload} at {at}; answered requests", looks)
    scale, unit = in_unit(latency for latencies in found[load].values() for latency in latencies)
    for name, latencies in found[load].items():
        colour, marker = looks[name]
        axes.ecdf([latency * scale for latency in latencies], color=colour, marker=marker, markersize=4, markevery=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"latency of a request ({unit})")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of requests at most as slow")
    return figure


def _trade_off(panel: Panel) -> "Figure | None":
    found = [
        (name, [run.latency_s.p50 for run in runs if run.latency_s], ys, xs)
        for name, xs, ys, runs in panel.points(lambda run: run.tokens_per_s if run.latency_s else None)
    ]
    if sum(len(loads) for *_, loads in found) < 2:
        return None
    figure, axes = canvas("Throughput against latency", f"{panel.workload}; the numbers: {panel.axis}", panel.shown)
    scale, unit = in_unit(latency for _, latencies, *_ in found for latency in latencies)
    right = max(latency * scale for _, latencies, *_ in found for latency in latencies)
    top = max(y for _, _, tokens, _ in found for y in tokens)
    told: list[tuple[float, float]] = []
    for name, latencies, tokens, loads in found:
        colour, marker = panel.looks[name]
        scaled = [latency * scale for latency in latencies]
        axes.plot(scaled, tokens, color=colour, marker=marker, markersize=5)
        for x, y, load in zip(scaled, tokens, loads, strict=True):
            if all(abs(x - other) > right / 30 or abs(y - height) > top / 20 for other, height in told):
                axes.annotate(f"{load:g}", (x, y), (5, -10), textcoords="offset points", fontsize=8, color=colour)
                told.append((x, y))
    axes.set_xlim(left=0)
    axes.set_xlabel(f"median latency of a request ({unit})")
    heights(axes, "output", "tokens/s", [0.0, top])
    return figure


def _ratios(report: Report) -> "Figure | None":
    ratios = [ratio for ratio in report.ratios if all(map(finite, (ratio.low, ratio.tokens_per_s_ratio, ratio.high)))]
    if not ratios:
        return None
    loads = list(dict.fromkeys(ratio.load for ratio in ratios))
    others = list(dict.fromkeys(ratio.against for ratio in ratios))
    subjects = ", ".join(dict.fromkeys(ratio.subject for ratio in ratios))
    note = "median of the blocks' ratios; bar: lowest and highest; hollow: one block"
    height = 1.5 + len(loads) * (0.2 + 0.12 * len(others))
    looks = {name: looks_of(report).get(name, OTHER) for name in others}
    labels = {f"against {name}": look for name, look in looks.items()}
    figure, axes = canvas(f"Throughput of {short(subjects)} against the others", note, labels, height=height)
    for ratio in ratios:
        colour, marker = looks[ratio.against]
        value = ratio.tokens_per_s_ratio
        place = loads.index(ratio.load) + (others.index(ratio.against) - (len(others) - 1) / 2) * 0.6 / len(others)
        reach = ([max(0.0, value - ratio.low)], [max(0.0, ratio.high - value)])
        fill = "white" if ratio.spread is None else colour
        axes.errorbar([value], [place], xerr=reach, color=colour, marker=marker, capsize=3, markerfacecolor=fill)
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(loads)), [short(load) for load in loads], fontsize=9)
    axes.set_ylim(len(loads) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ratio of output tokens/s (above 1: faster)")
    return figure


_SHARES: Final[dict[str, dict[str, Any]]] = {
    "p50": {"linestyle": "-"},
    "p99": {"linestyle": "--", "markerfacecolor": "white"},
}
_PLOTS: Final[dict[str, Callable[[Panel], "Figure | None"]]] = {
    "throughput": _throughput,
    "ttft": partial(_percentiles, field="ttft_s", title="Time to first token"),
    "itl": partial(_percentiles, field="itl_s", title="Inter-token latency"),
    "latency": _distribution,
    "trade-off": _trade_off,
}
