"""What slow work reports, and how it is ended."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chancellor import progress, quantize
from chancellor.errors import EngineStartError


def test_work_ends_at_the_next_step_that_it_reports(tiny_model: Path, tmp_path: Path) -> None:
    """What it has written until then is removed."""
    steps: list[progress.Progress] = []
    written: list[str] = []

    def note(step: progress.Progress) -> None:
        steps.append(step)
        written.extend(path.name for path in tmp_path.glob(".q.partial/*"))

    with (
        progress.listening(note),
        pytest.raises(EngineStartError, match="interrupted"),
        progress.endable(lambda: bool(written)),
    ):
        quantize(str(tiny_model), tmp_path / "q")
    assert [path.name for path in tmp_path.iterdir()] == [".q.lock"]
    assert steps[-1]["completed"] != steps[-1]["total"]
    quantize(str(tiny_model), tmp_path / "q")  # nobody wants this one to end


def test_work_of_other_threads_and_later_work_goes_on() -> None:
    with progress.endable(lambda: True):
        with ThreadPoolExecutor(1) as threads:
            threads.submit(progress.report, "start", "x", "y").result()
        with pytest.raises(EngineStartError):
            progress.report("start", "x", "y")
    progress.report("start", "x", "y")
