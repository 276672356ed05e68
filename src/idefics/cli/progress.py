"""The moving line that a person sees while something takes its time. Imports rich only where there is a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class ProgressDisplay:
    """At most one spinner or bar, on standard error; nothing at all where that is not a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._progress: Progress | None = None

    def start_spinner(self, text: str) -> None:
        """Something is going on."""
        if self._is_terminal:
            from rich.progress import SpinnerColumn, TextColumn

            self._start(SpinnerColumn(), TextColumn("{task.description}"), text=text, total=None)

    def start_counter(self, text: str, total: int) -> None:
        """`total` things are done one after another; `reach` says how far it is."""
        if self._is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._start(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def start_download(self, text: str, total: int) -> None:
        """`total` bytes are coming; `reach` says how many are there."""
        if self._is_terminal:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
            self._start(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def set_completed(self, completed: int) -> None:
        """So much is done. May come from any thread."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=completed)

    def stop(self) -> None:
        """Takes the line away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The line makes room while something else is printed."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        yield
        self._progress.start()

    def _start(self, *columns: ProgressColumn, text: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.stop()
        # What is printed meanwhile goes its own way, by `aside`: rich would fold it to the terminal's width.
        self._progress = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.add_task(text, total=total)
        self._progress.start()
