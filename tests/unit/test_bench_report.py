"""How a report is kept."""

import json
from pathlib import Path

import pytest

from chancellor.bench import page, plots
from chancellor.bench.report import Report
from chancellor.errors import ReportError
from tests.reports import full_report, make_report


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
