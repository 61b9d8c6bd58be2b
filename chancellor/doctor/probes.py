"""What the heavy packages say when they are imported, in a process of their own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from chancellor.doctor.finding import Finding, error, ok

__all__ = ["PACKAGES", "Facts", "ask", "imports"]

Facts = Mapping[str, Any]
"""What one package said: "version" and more, or "error"."""

PACKAGES: Final = ("torch", "torchao", "transformers", "vllm")
"""In an order in which each needs those before it."""
_LIMIT_S: Final = 120.0  # of one package; a cold disk takes a minute for vLLM
_PROBE: Final = Path(__file__).with_name("probe.py")
_QUIET: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}


def ask(
    packages: Sequence[str],
    question: Callable[[], Mapping[str, Any]] = lambda: {"architectures": [], "weights": {}},
    *,
    say: Callable[[str], None] = lambda _: None,
    limit_s: float = _LIMIT_S,
) -> dict[str, Facts]:
    """Import packages in a process of their own, and in another one those after an import that ended it.

    Args:
        packages: what to import, in this order.
        question: returns what vLLM is to be asked, see `probe`; it may take as long as the imports before.
        say: is told which import is awaited.
        limit_s: seconds that one import may take.
    """
    answers: dict[str, Facts] = {}
    while waiting := [package for package in packages if package not in answers]:
        with tempfile.TemporaryFile() as said, _started(waiting, said) as process:
            for package in waiting:
                say(f"importing {package}")
                if package == "vllm" and process.stdin is not None:
                    with suppress(BrokenPipeError), process.stdin:  # a process that has ended says so below
                        process.stdin.write(json.dumps(question()))
                line, late = _line(process, limit_s)
                if line is None:
                    answers[package] = _unanswered(package, process.wait(), said, limit_s if late else None)
                    break
                answers.update(json.loads(line))
    return answers


@contextmanager
def _started(packages: Sequence[str], said: IO[bytes]) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that imports the packages, and end it after the block."""
    # -P: the folder of the program would come first in the search for modules.
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", str(_PROBE), *packages],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        env={**_QUIET, **os.environ},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: "subprocess.Popen[str]", limit_s: float) -> tuple[str | None, bool]:
    """Return the next line, or None when the process has ended, and whether it was ended for taking too long."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        process.kill()

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
    finally:
        timer.cancel()
    return (line if line.endswith("\n") else None), bool(late)


def _unanswered(package: str, code: int, said: IO[bytes], limit_s: float | None) -> Facts:
    if limit_s is not None:
        fix = f"See where it hangs: timeout -s ABRT {limit_s:g} python -X faulthandler -c 'import {package}'"
        return {"error": f"the import did not end within {limit_s:g} seconds", "fix": fix}
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    ending = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    return {"error": f"the import ended the interpreter ({ending}){f': {lines[-1]}' if lines else ''}"}


def imports(probes: Mapping[str, Facts], repair: str) -> Iterator[Finding]:
    """Say what cannot be imported.

    Args:
        probes: the answers of the packages that are installed.
        repair: what makes the environment anew.
    """
    for package, facts in probes.items():
        check = f"import-{package}"
        if (problem := facts.get("error")) is None:
            yield ok(check, f"{package} {facts['version']} can be imported")
            continue
        missing = str(facts.get("missing") or "").partition(".")[0]
        fix = repair if not missing or missing in PACKAGES else f"pip install {missing}"
        yield error(check, f"{package} is installed, but cannot be imported: {problem}", facts.get("fix") or fix)
