"""Everything in the README runs, in one program, as a user would paste it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.served import Served
from tests.unit.test_readme import blocks

pytestmark = pytest.mark.engine


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    with Served("--preload", "none") as server:  # for what the README asks of `make serve`
        program = "\n\n".join(blocks("python")).replace("http://127.0.0.1:8000", server.url)
        script.write_text(program, encoding="utf-8")
        made = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=900, cwd=tmp_path
        )
    assert made.returncode == 0, made.stderr
    printed = made.stdout.splitlines()
    assert "4" in printed[0]
    assert printed[1].startswith("smollm2-135m-int8 96.66 ")
    assert "smollm2-135m-int8 96.66 " in printed[2]
    assert "high complexity: the strong model" in printed
    assert any(line.endswith(" smollm2-135m-int8 low complexity: the light model") for line in printed)
    assert [line.split()[:3] for line in printed[-2:]] == [["graph", "4", "8"], ["raw", "4", "8"]]
