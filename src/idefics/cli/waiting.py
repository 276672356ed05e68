"""The moving line that a person sees while something takes its time. Imports rich only where there is a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID


class Waiting:
    """At most one spinner or bar, on standard error; nothing at all where that is not a terminal."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._shown: tuple[Progress, TaskID] | None = None

    def spin(self, text: str) -> None:
        """Something is going on."""
        if self._watched:
            from rich.progress import SpinnerColumn, TextColumn

            self._show(SpinnerColumn(), TextColumn("{task.description}"), text=text, total=None)

    def count(self, text: str, total: int) -> None:
        """`total` things are being done one after another."""
        if self._watched:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._show(*columns, TimeRemainingColumn(), text=text, total=total)

    def download(self, text: str, total: int) -> None:
        """`total` bytes are coming."""
        if self._watched:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._show(*columns, TimeRemainingColumn(), text=text, total=total)

    def reach(self, done: int) -> None:
        """So many of the total are done. May come from any thread."""
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=done)

    def end(self) -> None:
        """Takes the line away."""
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The line makes room while something else is printed."""
        if self._shown is None:
            yield
            return
        progress, _ = self._shown
        progress.stop()
        yield
        progress.start()

    def _show(self, *columns: ProgressColumn, text: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.end()
        # Printed words go their own way, by `aside`: rich would fold them to the terminal's width.
        progress = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._shown = progress, progress.add_task(text, total=total)
        progress.start()
