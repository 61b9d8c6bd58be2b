"""The user's terminal, kept free of what engines and libraries print."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from chancellor import progress
from chancellor.engines.logs import log_file

__all__ = ["Terminal", "terminal"]


class Terminal:
    """Where a command prints: results to stdout, everything else to stderr."""

    def __init__(self, out: Console, err: Console) -> None:
        self.out = out
        self.err = err

    @contextmanager
    def working(self, message: str) -> Iterator[Status]:
        """Show a spinner with what is going on, as it is reported."""
        with self.err.status(message) as status:

            def show(step: progress.Progress) -> None:
                text = f"{step['model']}: {step['message']}"
                if step["completed"] is not None and step["total"]:
                    text += f" {_bar(step['completed'] / step['total'])}"
                status.update(text)

            with progress.listening(show):
                yield status


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Send the file descriptors 1 and 2 to the engine log, and give consoles on the real ones.

    C++ code, child processes and libraries write to the descriptors directly; replacing sys.stdout would not do.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log = os.open(log_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    with (
        open(saved[0], "w", encoding="utf-8", closefd=False) as out,
        open(saved[1], "w", encoding="utf-8", closefd=False) as err,
    ):
        try:
            yield Terminal(Console(file=out, soft_wrap=True, highlight=False), Console(file=err, highlight=False))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            out.flush()
            err.flush()
            # The engines end at exit and have things to say: only our own error messages need the terminal again.
            sys.stderr = open(saved[1], "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _bar(share: float, width: int = 24) -> str:
    filled = round(share * width)
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (width - filled)}[/] {share:4.0%}"
