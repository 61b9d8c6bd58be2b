"""The page that tells a report."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chancellor.bench import page, plots
from chancellor.bench.report import Report
from tests.reports import (
    DASH,
    GPU,
    HOSTILE,
    MACHINE,
    full_report,
    make_ratio,
    make_report,
    make_run,
    make_segment,
    silent_run,
)


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
