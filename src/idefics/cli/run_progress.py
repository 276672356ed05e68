"""The progress of `idefics run`: a bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from idefics.cli.output import OutputWriter

if TYPE_CHECKING:
    from idefics.batch.run_counts import RunCounts

LINE_SECONDS = 10.0  # between plain lines
BAR_SECONDS = 0.1


class RegularProgress:
    """Shows a line with a bar on a terminal, else prints the line every ten seconds.

    Args:
        writer: its own progress display, such as that of loading the model, has priority; it removes the bar.
    """

    def __init__(self, writer: OutputWriter) -> None:
        self._writer, self._is_terminal = writer, sys.stderr.isatty()
        self._shown_time = time.monotonic()

    def is_due(self, now: float) -> bool:
        """Whether nothing was shown a moment ago."""
        return now - self._shown_time >= (BAR_SECONDS if self._is_terminal else LINE_SECONDS)

    def show_line(self, line: str, done: int, total: int | None) -> None:
        """Shows a line; `done` of `total` is where its bar stands."""
        self._shown_time = time.monotonic()
        if self._is_terminal:
            self._writer.progress.update(line, done, total)
        else:
            self._writer.print_status(line)


class RunProgress(RegularProgress):
    """Shows how far a run is: rows, rows and tokens a second, the time left, errors."""

    def __init__(self, writer: OutputWriter) -> None:
        super().__init__(writer)
        self._start: tuple[float, int, int] | None = None  # time, finished rows and tokens when work began

    def show(self, counts: RunCounts) -> None:
        """Shows the counts, if they were not shown a moment ago."""
        now = time.monotonic()
        if self._start is None and counts.num_written + counts.num_failed > counts.num_reused:
            self._start = (now, counts.num_written + counts.num_failed, counts.num_tokens)
        if self.is_due(now):
            self.show_line(self.describe(counts, now), counts.num_done, counts.num_expected)

    def describe(self, counts: RunCounts, now: float) -> str:
        """One line: rows done, rows and tokens a second, time left, errors.

        Rates and the time left are of the time since the first row was answered, without the loading of the model.

        Args:
            counts: what the run has done.
            now: the time, by `time.monotonic`.
        """
        expected = f" of {counts.num_expected:,}" if counts.num_expected is not None else ""
        parts = [f"{counts.num_done:,}{expected} rows"]
        if self._start is not None:
            start_time, start_rows, start_tokens = self._start
            seconds = max(now - start_time, 1e-3)
            rate = (counts.num_written + counts.num_failed - start_rows) / seconds
            parts.append(f"{rate:.2f} rows/s" if rate < 10 else f"{rate:,.0f} rows/s")
            parts.append(f"{(counts.num_tokens - start_tokens) / seconds:,.0f} tokens/s")
            if counts.num_expected is not None and rate > 0:
                parts.append(f"{format_duration((counts.num_expected - counts.num_done) / rate)} left")
        if failed := counts.num_failed + counts.num_failed_before:
            parts.append(f"{failed:,} failed")
        return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """A duration for people: "45 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
