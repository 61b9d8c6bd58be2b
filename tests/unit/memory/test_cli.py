"""What `chancellor models` and `chancellor doctor` say of memory is what the pool counts on."""

import json
from pathlib import Path

import pytest

from chancellor.catalog import Catalog
from chancellor.cli.models import run
from chancellor.doctor.memory import fit
from chancellor.memory import Ledger, estimate
from chancellor.settings import settings
from tests.entries import GIB


def test_what_engines_took_corrects_what_models_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHANCELLOR_CACHE_DIR", str(tmp_path))
    settings.cache_clear()
    try:
        spec = Catalog.load(None)["smollm2-135m"]
        guess = estimate(spec)
        before = _memory(capsys, spec.name)
        assert before["expected_bytes"] == before["estimate_bytes"]
        assert before["measured_bytes"] is None
        (said,) = fit(spec)
        Ledger().record(spec, guess.total + 5 * GIB)
        after = _memory(capsys, spec.name)
        assert after["estimate_bytes"]["total"] == guess.total
        assert after["expected_bytes"]["total"] >= guess.total + 5 * GIB
        assert after["measured_bytes"] == guess.total + 5 * GIB
        (says,) = fit(spec)
        assert says.message != said.message
    finally:
        settings.cache_clear()


def _memory(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, dict[str, int]]:
    run(None, as_json=True)
    listed = json.loads(capsys.readouterr().out)["models"]
    found: dict[str, dict[str, int]] = next(one["memory"] for one in listed if one["name"] == name)
    return found
