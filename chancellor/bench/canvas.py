"""What all plots of a benchmark share: panels, colours, a canvas. matplotlib without pyplot: no figure is kept."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

from chancellor.bench.report import Report, Run
from chancellor.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "OTHER",
    "Panel",
    "canvas",
    "finite",
    "heights",
    "in_unit",
    "looks_of",
    "panels",
    "require_matplotlib",
    "short",
    "styled",
]

# Okabe and Ito's colours, told apart with any kind of colour vision; the markers differ for prints in grey.
_LOOKS: Final = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
OTHER: Final = ("#777777", "o")
GREY: Final = "#555555"
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
class Panel:
    """The runs that share an x axis: one workload, and concurrencies or rates."""

    workload: str
    axis: Literal["concurrency", "rate"]
    targets: dict[str, list[Run]]
    """In the order of the report; each by rising load."""
    looks: dict[str, tuple[str, str]]

    def points(self, pick: Callable[[Run], float | None]) -> Iterator[tuple[str, list[float], list[float], list[Run]]]:
        """Yield each target with the loads, the values and the runs where the value is known."""
        for name, runs in self.targets.items():
            known = [(getattr(run, self.axis), value, run) for run in runs if finite(value := pick(run))]
            if known:
                yield name, [x for x, *_ in known], [y for _, y, _ in known], [run for *_, run in known]

    @property
    def shown(self) -> dict[str, tuple[str, str]]:
        return {name: self.looks[name] for name in self.targets}

    def look(self, figure: "Figure", axes: "Axes", name: str) -> dict[str, Any]:
        """Return a target's line style; some pixels sideways, or whiskers at one load would cover one another."""
        from matplotlib.transforms import ScaledTranslation

        colour, marker = self.looks[name]
        place = list(self.targets).index(name) - (len(self.targets) - 1) / 2
        moved = axes.transData + ScaledTranslation(
            place * min(4, 20 / len(self.targets)) / 72, 0, figure.dpi_scale_trans
        )
        return {"color": colour, "marker": marker, "markersize": 5, "transform": moved}

    def scale(self, axes: "Axes", values: Iterable[float]) -> None:
        """Tick the loads that were measured, and no others."""
        axes.set_xlabel("requests in flight (concurrency)" if self.axis == "concurrency" else "arrivals (requests/s)")
        loads = sorted(set(values))
        low, high = loads[0], loads[-1]
        if self.axis == "concurrency":
            axes.set_xscale("log", base=2)
            room = max(1.4, (high / low) ** 0.08)
            axes.set_xlim(low / room, high * room)
        else:
            axes.set_xlim(0, high * 1.1)
        place = math.log2 if self.axis == "concurrency" else float
        ticks = loads[:1]
        for load in loads[1:]:
            if place(load) - place(ticks[-1]) >= (place(high) - place(low)) / 16:
                ticks.append(load)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()


def require_matplotlib() -> None:
    """Import it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401, ICN001 - not for pyplot
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "bench") from error


@contextmanager
def styled(more: dict[str, Any] | None = None) -> Iterator[None]:
    """Keep the user's matplotlibrc out, and leave it as it was."""
    try:
        import matplotlib as mpl
        from matplotlib import style
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "bench") from error
    with mpl.rc_context(), style.context(["default", {**_STYLE, **(more or {})}]), warnings.catch_warnings():
        # A browser has fonts for names that matplotlib's font has no letters for.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def looks_of(report: Report) -> dict[str, tuple[str, str]]:
    """Return each target's colour and marker, the same in all plots."""
    count = len(_LOOKS)
    return {
        # With more targets than colours, the same colour comes with another marker.
        name: (_LOOKS[number % count][0], _LOOKS[(number + number // count) % count][1])
        for number, name in enumerate(dict.fromkeys(run.name for run in report.runs))
    }


def panels(report: Report) -> Iterator[Panel]:
    """Yield a panel for each workload and kind of load."""
    looks = looks_of(report)
    for axis in ("concurrency", "rate"):
        runs = [run for run in report.runs if (getattr(run, axis) or 0) > 0]
        for workload in dict.fromkeys(run.workload for run in runs):
            targets: dict[str, list[Run]] = {}
            for run in sorted((run for run in runs if run.workload == workload), key=lambda run: getattr(run, axis)):
                targets.setdefault(run.name, []).append(run)
            yield Panel(workload, axis, {name: targets[name] for name in looks if name in targets}, looks)


def canvas(
    title: str, note: str, looks: Mapping[str, tuple[str, str]], more: Mapping[str, Any] = {}, height: float = 3.7
) -> tuple["Figure", "Axes"]:
    """Return a figure with title and legend, higher by the legend's further rows."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    entries: dict[str, dict[str, Any]] = {name: {"color": look[0], "marker": look[1]} for name, look in looks.items()}
    entries |= {name: {"color": GREY, "marker": "o", **look} for name, look in more.items()}
    labels = [short(name) for name in entries]
    one_row = sum(len(label) + 7 for label in labels) <= 80
    columns = len(labels) if one_row else max(1, 80 // (max(map(len, labels)) + 7))
    height += 0.2 * (math.ceil(len(labels) / columns) - 1)
    # The plot begins below the title and the note, which both start at the left edge.
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 38 / 72 / height))
    figure = Figure(figsize=(5.6, height), layout=layout, facecolor="white")
    figure.suptitle(title, x=0.01, y=1 - 5 / 72 / height, horizontalalignment="left", fontsize=11, weight="bold")
    figure.text(0.01, 1 - 21 / 72 / height, short(note, 82), verticalalignment="top", fontsize=8.5, color=GREY)
    if len(labels) > 1:
        handles = [Line2D([], [], markersize=5, **look) for look in entries.values()]
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
    return figure, figure.add_subplot()


def short(text: str, length: int = 36) -> str:
    """Leave out the middle of what is too long: the load is at the end."""
    text = " ".join(text.split())
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[len(text) - half + 1 :]}"


def finite(value: float | None) -> TypeGuard[float]:
    """Return whether there is a number that can be drawn."""
    return value is not None and math.isfinite(value)


def in_unit(seconds: Iterable[float]) -> tuple[float, str]:
    """Return the factor and the name of the unit that suits the values."""
    return (1.0, "s") if max(seconds, default=0.0) >= 2.0 else (1000.0, "ms")


def heights(axes: "Axes", name: str, unit: str, values: Sequence[float]) -> None:
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
