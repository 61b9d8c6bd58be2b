"""The figures of a report."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from chancellor.bench import page, plots
from chancellor.errors import MissingDependencyError
from tests.reports import HOSTILE, full_report, make_report, make_run, silent_run


def test_every_plot_has_a_figure() -> None:
    names = ["throughput", "ttft", "itl", "latency", "trade-off"]
    # The rate is a second panel, with one load of two targets.
    assert list(plots.figures(full_report())) == ["ratios", *(f"{name}-{panel}" for panel in (1, 2) for name in names)]
    assert list(plots.figures(make_report())) == names[:-1]


def test_plots_without_data_are_left_out() -> None:
    assert plots.figures(make_report(silent_run())) == {}
    assert plots.figures(make_report(runs=[])) == {}
    no_stream = make_run(ttft_s=None, itl_s=None)
    assert list(plots.figures(make_report(no_stream, make_run(concurrency=16, ttft_s=None, itl_s=None)))) == [
        "throughput",
        "latency",
        "trade-off",
    ]
    assert list(plots.figures(make_report(make_run(samples=[], tokens_per_s=float("nan"))))) == ["ttft", "itl"]


def test_a_target_without_answers_stays_out_of_its_plots() -> None:
    figure = plots.figures(make_report(make_run("graph"), silent_run("raw")))["latency"]
    assert len(figure.axes[0].lines) == 1


def test_the_latency_plot_takes_the_highest_load_in_common() -> None:
    runs = [make_run("graph", 1), make_run("graph", 8), make_run("graph", 32), make_run("raw", 1), make_run("raw", 8)]
    figure = plots.figures(make_report(*runs))["latency"]
    assert "128/64 at concurrency 8; answered requests" in [text.get_text() for text in figure.texts]
    assert len(figure.axes[0].lines) == 2


def test_axes_tell_loads_and_units() -> None:
    figures = plots.figures(full_report())
    closed, opened = figures["throughput-1"].axes[0], figures["throughput-2"].axes[0]
    assert [label.get_text() for label in closed.get_xticklabels()] == ["1", "8", "32"]
    assert closed.get_xscale() == "log"
    assert closed.get_xlabel() == "requests in flight (concurrency)"
    assert closed.get_ylabel() == "output (tokens/s)"
    assert opened.get_xlabel() == "arrivals (requests/s)"
    assert [label.get_text() for label in opened.get_xticklabels()] == ["2"]
    assert re.search(r"\((ms|s)", figures["ttft-1"].axes[0].get_ylabel())


def test_whiskers_span_the_blocks() -> None:
    axes = plots.figures(make_report(make_run(blocks=(90.0, 120.0, 102.0))))["throughput"].axes[0]
    bar = axes.containers[0].lines[2][0]  # type: ignore[attr-defined]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([90.0, 120.0])


def test_a_target_has_one_colour_everywhere() -> None:
    report = full_report()
    colours = plots.colours(report)
    assert list(colours) == ["graph", "raw"]
    for name, figure in plots.figures(report).items():
        drawn = {line.get_color() for line in figure.axes[0].lines} - {"#555555"}
        assert drawn == ({colours["raw"]} if name == "ratios" else set(colours.values()))


def test_svgs_are_alike_for_the_same_report_and_share_no_id() -> None:
    first, second = ([plots.svg(figure) for figure in plots.figures(full_report()).values()] for _ in range(2))
    assert first == second
    ids = [found for text in first for found in re.findall(r' id="([^"]*)"', text)]
    assert len(ids) == len(set(ids)) > 0
    for text in first:
        assert text.startswith("<svg")
        assert "tokens/s" in text or "latency" in text or "token" in text  # kept as text
        assert not re.search(r"<!DOCTYPE|<\?xml|<metadata|\bdate\b", text)
        assert set(re.findall(r"https?://[^\s\"]*", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        drawn = ET.fromstring(text)
        used = {value.strip("#") for node in drawn.iter() for name, value in node.items() if name.endswith("href")}
        used |= set(re.findall(r"url\(#([^)]*)\)", text))
        assert used <= {node.get("id") for node in drawn.iter()}


def test_pngs_are_written(tmp_path: Path) -> None:
    from matplotlib.image import imread

    written = plots.save_pngs(make_report(make_run("graph"), make_run(HOSTILE, rate=None)), tmp_path / "plots")
    assert [path.name for path in written] == ["throughput.png", "ttft.png", "itl.png", "latency.png", "trade-off.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        height, width, _ = imread(path).shape
        assert (width, height) == (896, 592)


def test_plots_leave_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    with mpl.rc_context({"lines.linewidth": 7.0, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        figure = plots.figures(make_report())["throughput"]
        assert "<text" in plots.svg(figure)
        assert figure.axes[0].lines[0].get_linewidth() < 7
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(("package", "module"), [("matplotlib", "matplotlib"), ("jinja2", "jinja2")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=package) as raised:
        page.render(make_report())
    assert "chancellor[bench]" in raised.value.hint
