"""A benchmark's plots, drawn by matplotlib without pyplot: no window, no figure kept anywhere."""

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

from chancellor.bench.report import Report, Run
from chancellor.errors import MissingDependencyError, ReportError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["colours", "figures", "save_pngs", "svg"]

# Okabe and Ito's colours, told apart with any kind of colour vision; the markers differ for prints in grey.
_LOOKS: Final = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
_OTHER: Final = ("#777777", "o")
_GREY: Final = "#555555"
_STYLE: Final = {
    "text.parse_math": False,  # a dollar in a target's name is a dollar
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class _Panel:
    """The runs that share an x axis: one workload, and concurrencies or rates."""

    workload: str
    axis: Literal["concurrency", "rate"]
    targets: dict[str, list[Run]]
    """In the order of the report; each by rising load."""
    looks: dict[str, tuple[str, str]]

    def points(self, pick: Callable[[Run], float | None]) -> Iterator[tuple[str, list[float], list[float], list[Run]]]:
        """Yield each target with the loads, the values and the runs where the value is known."""
        for name, runs in self.targets.items():
            known = [(getattr(run, self.axis), value, run) for run in runs if _finite(value := pick(run))]
            if known:
                yield name, [x for x, *_ in known], [y for _, y, _ in known], [run for *_, run in known]

    def look(self, figure: "Figure", axes: "Axes", name: str) -> dict[str, Any]:
        """Return a target's line style; some pixels sideways, or whiskers at one load would cover one another."""
        from matplotlib.transforms import ScaledTranslation

        colour, marker = self.looks[name]
        place = list(self.targets).index(name) - (len(self.targets) - 1) / 2
        moved = axes.transData + ScaledTranslation(place * 4 / 72, 0, figure.dpi_scale_trans)
        return {"color": colour, "marker": marker, "markersize": 5, "transform": moved}

    def scale(self, axes: "Axes", values: Iterable[float]) -> None:
        """Tick the loads that were measured, and no others."""
        axes.set_xlabel("requests in flight (concurrency)" if self.axis == "concurrency" else "arrivals (requests/s)")
        loads = sorted(set(values))
        low, high = loads[0], loads[-1]
        if self.axis == "concurrency":
            axes.set_xscale("log", base=2)
            axes.set_xlim(low / 1.4, high * 1.4)
        else:
            axes.set_xlim(0, high * 1.1)
        place = math.log2 if self.axis == "concurrency" else float
        ticks = loads[:1]
        for load in loads[1:]:
            if place(load) - place(ticks[-1]) >= (place(high) - place(low)) / 16:
                ticks.append(load)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()


def colours(report: Report) -> dict[str, str]:
    """Return each target's colour, the same in all plots."""
    return {name: colour for name, (colour, _) in _looks(report).items()}


def figures(report: Report) -> dict[str, "Figure"]:
    """Draw all plots that there is data for, by name. With several workloads the names are numbered.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with _style():
        panels = list(_panels(report))
        drawn = {}
        for number, panel in enumerate(panels, 1):
            for name, draw in _PLOTS.items():
                if figure := draw(panel):
                    drawn[f"{name}-{number}" if len(panels) > 1 else name] = figure
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
        with _style():
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
    with _style({"svg.hashsalt": f"chancellor/{figure.get_label()}"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)


@contextmanager
def _style(more: dict[str, Any] | None = None) -> Iterator[None]:
    """Keep the user's matplotlibrc out, and leave it as it was."""
    try:
        import matplotlib as mpl
        from matplotlib import style
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "bench") from error
    with mpl.rc_context(), style.context(["default", {**_STYLE, **(more or {})}]):
        yield


def _looks(report: Report) -> dict[str, tuple[str, str]]:
    names = dict.fromkeys([run.name for run in report.runs])
    return {name: _LOOKS[number % len(_LOOKS)] for number, name in enumerate(names)}


def _panels(report: Report) -> Iterator[_Panel]:
    looks = _looks(report)
    for axis in ("concurrency", "rate"):
        runs = [run for run in report.runs if (getattr(run, axis) or 0) > 0]
        for workload in dict.fromkeys(run.workload for run in runs):
            targets: dict[str, list[Run]] = {}
            for run in sorted((run for run in runs if run.workload == workload), key=lambda run: getattr(run, axis)):
                targets.setdefault(run.name, []).append(run)
            yield _Panel(workload, axis, {name: targets[name] for name in looks if name in targets}, looks)


def _canvas(title: str, note: str, height: float = 3.7) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # The plot begins below the title and the note, which both start at the left edge.
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 38 / 72 / height))
    figure = Figure(figsize=(5.6, height), layout=layout, facecolor="white")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, y=1 - 5 / 72 / height, horizontalalignment="left", fontsize=11, weight="bold")
    figure.text(0.01, 1 - 21 / 72 / height, _short(note, 82), verticalalignment="top", fontsize=8.5, color=_GREY)
    return figure, axes


def _legend(figure: "Figure", looks: dict[str, tuple[str, str]], *more: tuple[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    entries: list[tuple[str, dict[str, Any]]] = [
        (name, {"color": colour, "marker": marker}) for name, (colour, marker) in looks.items()
    ]
    entries += more
    if len(entries) > 1:
        handles = [Line2D([], [], markersize=5, **look) for _, look in entries]
        labels = [_short(name) for name, _ in entries]
        one_row = sum(len(label) + 7 for label in labels) <= 80
        columns = len(labels) if one_row else max(1, min(len(labels), 80 // (max(map(len, labels)) + 7)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def _short(text: str, length: int = 36) -> str:
    """Leave out the middle of what is too long: the load is at the end."""
    text = " ".join(text.split())
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[len(text) - half + 1 :]}"


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _in_unit(seconds: Iterable[float]) -> tuple[float, str]:
    return (1.0, "s") if max(seconds, default=0.0) >= 2.0 else (1000.0, "ms")


def _heights(axes: "Axes", name: str, unit: str, values: Sequence[float]) -> None:
    """Label the y axis, which starts at 0 if the values do not lie too far apart for it."""
    low, high = min(values), max(values)
    wide = low > 0 and high / low > 50
    if wide:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
    else:
        axes.set_ylim(0, high * 1.08 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_ylabel(f"{name} ({unit}{', log scale' if wide else ''})")


def _throughput(panel: _Panel) -> "Figure | None":
    figure, axes = _canvas("Throughput", f"{panel.workload}; whiskers: lowest and highest block")
    loads: list[float] = []
    tops = [0.0]
    for name, xs, ys, runs in panel.points(lambda run: run.tokens_per_s):
        blocks = [[block.tokens_per_s for block in run.segments if _finite(block.tokens_per_s)] for run in runs]
        below = [max(0.0, y - min(found, default=y)) for y, found in zip(ys, blocks, strict=True)]
        above = [max(0.0, max(found, default=y) - y) for y, found in zip(ys, blocks, strict=True)]
        look: dict[str, Any] = panel.look(figure, axes, name)
        axes.errorbar(xs, ys, (below, above), capsize=3, elinewidth=1, **look)
        loads += xs
        tops += [y + more for y, more in zip(ys, above, strict=True)]
    if not loads:
        return None
    panel.scale(axes, loads)
    _heights(axes, "output", "tokens/s", tops)
    _legend(figure, {name: panel.looks[name] for name in panel.targets})
    return figure


def _percentiles(panel: _Panel, field: str, title: str) -> "Figure | None":
    def pick(share: str, run: Run) -> float | None:
        return getattr(getattr(run, field), share, None)

    found = [(share, *points) for share in _SHARES for points in panel.points(partial(pick, share))]
    if not found:
        return None
    figure, axes = _canvas(title, panel.workload)
    scale, unit = _in_unit(y for _, _, _, ys, _ in found for y in ys)
    for share, name, xs, ys, _ in found:
        axes.plot(xs, [y * scale for y in ys], **{**panel.look(figure, axes, name), **_SHARES[share]})
    panel.scale(axes, [x for _, _, xs, *_ in found for x in xs])
    _heights(axes, title.lower(), unit, [y * scale for _, _, _, ys, _ in found for y in ys])
    shares = [(share, {"color": _GREY, "marker": "o", **look}) for share, look in _SHARES.items()]
    _legend(figure, {name: panel.looks[name] for name in panel.targets}, *shares)
    return figure


def _distribution(panel: _Panel) -> "Figure | None":
    found: dict[float, dict[str, list[float]]] = {}
    for name, runs in panel.targets.items():
        for run in runs:
            if latencies := [sample.latency_s for sample in run.samples if _finite(sample.latency_s)]:
                found.setdefault(getattr(run, panel.axis), {})[name] = latencies
    if not found:
        return None
    # The highest load that all targets finished requests under, or as many of them as possible.
    load = max(found, key=lambda load: (len(found[load]), load))
    at = f"concurrency {load:g}" if panel.axis == "concurrency" else f"{load:g} requests/s"
    figure, axes = _canvas("Distribution of latency", f"{panel.workload} at {at}; answered requests")
    scale, unit = _in_unit(latency for latencies in found[load].values() for latency in latencies)
    for name, latencies in found[load].items():
        colour, marker = panel.looks[name]
        axes.ecdf([latency * scale for latency in latencies], color=colour, marker=marker, markersize=4, markevery=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"latency of a request ({unit})")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of requests at most as slow")
    _legend(figure, {name: panel.looks[name] for name in found[load]})
    return figure


def _trade_off(panel: _Panel) -> "Figure | None":
    found = [
        (name, [run.latency_s.p50 for run in runs if run.latency_s], ys, xs)
        for name, xs, ys, runs in panel.points(lambda run: run.tokens_per_s if run.latency_s else None)
    ]
    if sum(len(loads) for *_, loads in found) < 2:
        return None
    figure, axes = _canvas("Throughput against latency", f"{panel.workload}; the numbers: {panel.axis}")
    scale, unit = _in_unit(latency for _, latencies, *_ in found for latency in latencies)
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
    _heights(axes, "output", "tokens/s", [0.0, top])
    _legend(figure, {name: panel.looks[name] for name, *_ in found})
    return figure


def _ratios(report: Report) -> "Figure | None":
    ratios = [ratio for ratio in report.ratios if all(map(_finite, (ratio.low, ratio.tokens_per_s_ratio, ratio.high)))]
    if not ratios:
        return None
    loads = list(dict.fromkeys(ratio.load for ratio in ratios))
    others = list(dict.fromkeys(ratio.against for ratio in ratios))
    subjects = ", ".join(dict.fromkeys(ratio.subject for ratio in ratios))
    note = "median of the blocks' ratios; bar: lowest and highest; hollow: one block"
    height = 1.5 + len(loads) * (0.2 + 0.12 * len(others))
    figure, axes = _canvas(f"Throughput of {_short(subjects)} against the others", note, height)
    looks = {name: _looks(report).get(name, _OTHER) for name in others}
    for ratio in ratios:
        colour, marker = looks[ratio.against]
        value = ratio.tokens_per_s_ratio
        place = loads.index(ratio.load) + (others.index(ratio.against) - (len(others) - 1) / 2) * 0.6 / len(others)
        reach = ([max(0.0, value - ratio.low)], [max(0.0, ratio.high - value)])
        fill = "white" if ratio.spread is None else colour
        axes.errorbar([value], [place], xerr=reach, color=colour, marker=marker, capsize=3, markerfacecolor=fill)
    axes.axvline(1.0, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(loads)), [_short(load) for load in loads], fontsize=9)
    axes.set_ylim(len(loads) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ratio of output tokens/s (above 1: faster)")
    _legend(figure, {f"against {name}": look for name, look in looks.items()})
    return figure


_SHARES: Final[dict[str, dict[str, Any]]] = {
    "p50": {"linestyle": "-"},
    "p99": {"linestyle": "--", "markerfacecolor": "white"},
}
_PLOTS: Final[dict[str, Callable[[_Panel], "Figure | None"]]] = {
    "throughput": _throughput,
    "ttft": partial(_percentiles, field="ttft_s", title="Time to first token"),
    "itl": partial(_percentiles, field="itl_s", title="Inter-token latency"),
    "latency": _distribution,
    "trade-off": _trade_off,
}
