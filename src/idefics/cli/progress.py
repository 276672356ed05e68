"""A spinner or progress bar on standard error. rich is imported only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class ProgressDisplay:
    """At most one spinner or bar at a time; shows nothing where standard error is not a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._progress: Progress | None = None

    def start_spinner(self, text: str) -> None:
        """Shows a spinner with a text, such as "Loading demo"."""
        if self._is_terminal:
            from rich.progress import SpinnerColumn, TextColumn

            self._start(SpinnerColumn(), TextColumn("{task.description}"), text=text, total=None)

    def start_counter(self, text: str, total: int) -> None:
        """Shows a bar that counts to `total`; `set_completed` moves it."""
        if self._is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._start(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def start_download(self, text: str, total: int) -> None:
        """Shows a bar of `total` bytes; `set_completed` moves it."""
        if self._is_terminal:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
            self._start(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def set_completed(self, completed: int) -> None:
        """Moves the bar to `completed`. Any thread may call it."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=completed)

    def stop(self) -> None:
        """Removes the spinner or bar; does nothing where there is none."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hides the spinner or bar while something else is printed."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        yield
        self._progress.start()

    def _start(self, *columns: ProgressColumn, text: str, total: int | None) -> None:
        """Replaces the display by one with these columns; `total` is None for a spinner."""
        from rich.console import Console
        from rich.progress import Progress

        self.stop()
        # Other output is printed inside `paused`: rich would wrap what it redirects to the terminal's width.
        self._progress = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.add_task(text, total=total)
        self._progress.start()
