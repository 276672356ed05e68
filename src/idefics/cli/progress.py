"""A spinner or progress bar on standard error. rich is imported only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class ProgressDisplay:
    """At most one spinner or bar at a time; shows nothing where standard error is not a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._progress: Progress | None = None

    def start(self, text: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Shows a spinner or a bar in place of what is shown.

        Args:
            text: stands next to it, such as "Loading demo".
            total: where the bar ends, which `set_completed` moves; None shows a spinner.
            in_bytes: whether the bar counts bytes.
        """
        if not self._is_terminal:
            return
        from rich import progress

        columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}")]
        if total is None:
            columns.insert(0, progress.SpinnerColumn())
        else:
            counter = progress.DownloadColumn() if in_bytes else progress.MofNCompleteColumn()
            columns += [progress.BarColumn(), counter, progress.TimeRemainingColumn()]
        self._show(columns, text, total)

    def _show(self, columns: Sequence[ProgressColumn], text: str, total: int | None) -> None:
        """Shows columns in place of what is shown."""
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

    def set_completed(self, completed: int) -> None:
        """Moves the bar to `completed`. Any thread may call it."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=completed)

    def update(self, text: str, completed: int, total: int | None) -> None:
        """Shows a line of text with a bar, in place of what is shown.

        Args:
            text: what stands next to the bar.
            completed, total: where the bar stands and ends; a total of None is not known.
        """
        if not self._is_terminal:
            return
        if self._progress is None:
            from rich.progress import BarColumn, TextColumn

            self._show([BarColumn(), TextColumn("{task.description}")], text, total)
        assert self._progress is not None
        self._progress.update(self._progress.task_ids[0], description=text, completed=completed, total=total)

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
