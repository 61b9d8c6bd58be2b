"""What CI runs is what it says: where there is a browser, no test of the page is left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
ASK = "from tests.integration import test_page as page; print(page.BROWSER, page.pytestmark.args)"


def test_it_stops_at_the_first_failure() -> None:
    assert "set -euo pipefail" in CI
    assert CI.splitlines()[-2:] == ["make lint", "make test"]
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("required", [True, False])
def test_without_a_browser_the_pages_tests_are_skipped_unless_it_is_required(tmp_path: Path, required: bool) -> None:
    exported = [line.split()[1] for line in CI.splitlines() if line.lstrip().startswith("export ")]
    assert exported == ["CHANCELLOR_BROWSER_REQUIRED=1"]
    environment = {name: value for name, value in os.environ.items() if name != "CHANCELLOR_BROWSER_REQUIRED"}
    environment |= {"PATH": str(tmp_path), **(dict(one.split("=") for one in exported) if required else {})}
    made = subprocess.run(
        [sys.executable, "-c", ASK], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == ["None", f"({not required},)"]
