"""`chancellor doctor`: what keeps Chancellor from working here, and the line that mends it."""

import json
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from chancellor.doctor import Report, examine

__all__ = ["run"]

_MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def run(config: Path | None, *, with_checksums: bool, as_json: bool) -> None:
    """Print the report; exit code 1 if there are errors."""
    with Console(stderr=True, highlight=False).status("looking around") as status:
        report = examine(config, with_checksums=with_checksums, say=lambda doing: status.update(escape(doing)))
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(), ensure_ascii=False) + "\n")
    else:
        _print(report, Console(highlight=False))
    sys.stdout.flush()
    sys.exit(0 if report.ok else 1)


def _print(report: Report, console: Console) -> None:
    for section in report.sections:
        console.print(f"[bold]{escape(section.name)}[/]")
        for found in section.findings:
            style = "dim" if found.status == "ok" else "none"
            console.print(f"  {_MARKS[found.status]} [{style}]{escape(found.message)}[/]", soft_wrap=True)
            if found.fix is not None:  # a line of its own, so that it can be copied
                console.print(f"    [cyan]{escape(found.fix)}[/]", soft_wrap=True)
    errors, warnings = report.count("error"), report.count("warning")
    counted = f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}, {report.count('ok')} checks are fine"
    style = "red" if errors else "yellow" if warnings else "green"
    console.print(f"\n[bold {style}]{counted}.[/]")


def _counted(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
