"""The progress bar on the terminal: stage, what it does, images done, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from vitesse.progress import Progress as Listener
from vitesse.report.summary import VERDICT_STYLES


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def stage(self, name: str, activity: str, total: int) -> None:
        if self._task is None:
            self._progress.start()  # not before: an error in the options should not leave an empty line
        else:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(activity, total=max(1, total), stage=name)

    def advance(self, steps: float = 1) -> None:
        if self._task is not None:
            self._progress.advance(self._task, steps)

    def row(self, stage: str, verdict: str, reason: str) -> None:
        line = Text.assemble(
            (f"{verdict:9}", VERDICT_STYLES.get(verdict, "")), " ", (stage, "bold"), f"  {reason}"
        )
        self._progress.console.print(line)


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Listener]:
    """Show progress on stderr while the block runs; on a pipe only the finished rows are printed."""
    columns = (
        TextColumn("[bold]{task.fields[stage]}"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console or Console(stderr=True), transient=True)
    try:
        yield _Bar(progress)
    finally:
        progress.stop()
