"""One thing that was looked at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from chancellor.errors import ChancellorError

__all__ = ["Finding", "Status", "collect", "error", "gib", "ok", "warning"]

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    check: str
    """Short name of the check, for scripts."""
    status: Status
    message: str
    fix: str | None = None
    """A command to run or a setting to change; None when ok."""


def ok(check: str, message: str) -> Finding:
    """Say that all is well."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, fix: str) -> Finding:
    """Say what may go wrong, or goes slower than it could."""
    return Finding(check, "warning", message, fix)


def error(check: str, message: str, fix: str) -> Finding:
    """Say what will not work."""
    return Finding(check, "error", message, fix)


def collect(check: str, found: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return the findings of a check. That it raised is a finding, too, after those that it had made."""
    findings: list[Finding] = []
    try:
        findings.extend(found())
    except ChancellorError as problem:
        findings.append(error(check, problem.message, problem.hint))
    except Exception as problem:  # noqa: BLE001 - a doctor who faints is of no use
        findings.append(
            error(
                check,
                f"This check itself failed: {type(problem).__name__}: {problem}",
                "Report it, with the output of: chancellor doctor --json",
            )
        )
    return findings


def gib(size: float) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / 2**30:,.1f} GiB"
