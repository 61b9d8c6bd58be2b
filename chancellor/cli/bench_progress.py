"""What a benchmark shows while it runs."""

from typing import TYPE_CHECKING, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from chancellor import progress
from chancellor.cli.terminal import Terminal

if TYPE_CHECKING:
    from chancellor.bench.events import Event

__all__ = ["BenchProgress"]


class BenchProgress:
    """A bar for the whole, a bar for the segment; plain lines where stderr is no terminal."""

    def __init__(self, user: Terminal, segments: int, *, subject: str) -> None:
        self._user = user
        self._subject = subject
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=user.err,
            transient=True,
        )
        self._live = user.err.is_terminal
        self._whole: TaskID = self._bars.add_task("segments", total=segments)
        self._segment: TaskID = self._bars.add_task("starting", total=None)

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def step(self, step: progress.Progress) -> None:
        """Show what a starting engine does."""
        self._bars.update(self._segment, description=escape(f"{step['model']}: {step['message']}"))

    def __call__(self, event: "Event") -> None:
        """Show what happened."""
        name = escape(event.target)
        if event.kind == "sample":
            self._bars.update(self._segment, completed=event.completed)
        elif event.kind == "segment":
            description = f"{name}, {escape(event.load)}"
            self._bars.update(self._segment, description=description, completed=0, total=event.total)
        elif event.kind == "starting":
            self._bars.update(self._segment, description=f"{name}: starting", completed=0, total=None)
        elif event.kind == "failed" and event.target == self._subject:
            pass  # ends the benchmark, as an error that tells the same
        else:
            if event.kind == "measured":
                self._bars.advance(self._whole)
            text = (
                f"{name}: {event.kind} after {event.message}"
                if event.kind == "started"
                else (
                    f"{name}, {escape(event.load)}: {event.message}"
                    if event.kind == "measured"
                    else f"[red]{name} failed:[/] {escape(event.message)}"
                )
            )
            self._user.err.print(f"[dim]{text}[/]")
