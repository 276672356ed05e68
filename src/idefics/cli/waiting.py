"""The moving line that a person sees while something takes its time. Imports rich only where there is a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class Waiting:
    """At most one spinner or bar, on standard error; nothing at all where that is not a terminal."""

    def __init__(self) -> None:
        self._is_watched = sys.stderr.isatty()
        self._shown: Progress | None = None

    def spin(self, text: str) -> None:
        """Something is going on."""
        if self._is_watched:
            from rich.progress import SpinnerColumn, TextColumn

            self._show(SpinnerColumn(), TextColumn("{task.description}"), text=text, total=None)

    def count(self, text: str, total: int) -> None:
        """`total` things are done one after another; `reach` says how far it is."""
        if self._is_watched:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._show(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def download(self, text: str, total: int) -> None:
        """`total` bytes are coming; `reach` says how many are there."""
        if self._is_watched:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

            name, bar, number = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
            self._show(name, bar, number, TimeRemainingColumn(), text=text, total=total)

    def reach(self, done: int) -> None:
        """So much is done. May come from any thread."""
        if self._shown is not None:
            self._shown.update(self._shown.task_ids[0], completed=done)

    def end(self) -> None:
        """Takes the line away."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The line makes room while something else is printed."""
        if self._shown is None:
            yield
            return
        self._shown.stop()
        yield
        self._shown.start()

    def _show(self, *columns: ProgressColumn, text: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.end()
        # What is printed meanwhile goes its own way, by `aside`: rich would fold it to the terminal's width.
        self._shown = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._shown.add_task(text, total=total)
        self._shown.start()
