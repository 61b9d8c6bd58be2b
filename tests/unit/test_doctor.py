"""The doctor as a whole: what it imports, collects and reports."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chancellor import gpus as nvml
from chancellor.doctor import Finding, engines, entries, examine, hardware, memory, probes, report, versions
from chancellor.doctor.finding import collect, error, ok
from tests.findings import one, write_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model")


class TestReport:
    def test_the_doctor_itself_imports_nothing_heavy(self) -> None:
        code = "import sys, chancellor.doctor; print({'torch', 'vllm', 'torchao', 'transformers'} & set(sys.modules))"
        made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert made.stdout == "set()\n"

    def test_a_check_that_raises_is_a_finding(self) -> None:
        def check() -> Iterator[Finding]:
            yield ok("a", "fine")
            raise ZeroDivisionError("oh")

        first, second = collect("b", check)
        assert first == ok("a", "fine")
        assert (second.check, second.status) == ("b", "error")
        assert "ZeroDivisionError: oh" in second.message

    def test_examine_outlives_everything(self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> Any:
            raise RuntimeError("on purpose")

        for module, name in (
            (nvml, "list_gpus"),
            (probes, "ask"),
            (engines, "questions"),
            (engines, "architecture"),
            (hardware, "features"),
            (memory, "free"),
            (memory, "fit"),
            (versions, "torch"),
            (entries, "find"),
        ):
            monkeypatch.setattr(module, name, broken)
        catalog = tmp_path / "chancellor.toml"
        catalog.write_text(f'[[models]]\nname = "x"\nsource = "{model}"\ntrinity = 96\n', encoding="utf-8")
        found = examine(catalog)
        assert not found.ok
        assert found.count("error") >= 9
        assert json.loads(json.dumps(found.as_json()))["ok"] is False

    def test_what_is_wrong_with_a_model_that_is_never_chosen(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(probes, "ask", lambda *_, **__: {"vllm": {"version": "0.32.0"}})
        catalog = tmp_path / "chancellor.toml"
        rows = [
            f'[[models]]\nname = "{name}"\nsource = "./{name}"\ntrinity = {score}'
            for name, score in (("a", 90), ("b", 96))
        ]
        catalog.write_text("\n".join(rows), encoding="utf-8")
        statuses = {section.name: [found.status for found in section.findings] for section in examine(catalog).sections}
        assert statuses["model a"] == ["ok", "warning"]
        assert statuses["model b"] == ["error"]

    def test_catalogs_and_settings_that_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from chancellor.settings import settings

        monkeypatch.setattr(probes, "ask", lambda *_, **__: {})
        found = {section.name: section for section in examine(tmp_path / "absent.toml").sections}["catalog"]
        assert one(found.findings, "catalog").status == "error"
        monkeypatch.setenv("CHANCELLOR_CONFIG", "")
        monkeypatch.setattr(report, "settings", settings.__wrapped__)
        monkeypatch.setenv("CHANCELLOR_MEMORY_SHARE", "9")
        found = {section.name: section for section in examine().sections}["catalog"]
        assert one(found.findings, "settings").fix == "unset CHANCELLOR_MEMORY_SHARE"

    def test_a_fix_that_is_only_told_gets_a_command(self) -> None:
        told = report._with_command(error("a", "b", "Quantise the original again with scales per row."))
        assert (
            told.fix == "Quantise the original again with scales per row: chancellor quantize SOURCE DEST --scheme int8"
        )
