"""`RunCounts`: what a batch run has done so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RunCounts:
    """What a run has done so far.

    Attributes:
        num_expected: how many rows it takes, about; None if that is not known.
        num_written: rows that were answered, those with a known answer included.
        num_failed: rows that ended in an error.
        num_reused: rows among these whose answer was known, from an equal picture or an earlier run.
        num_done_before: rows that had an answer when the run came to them.
        num_failed_before: rows that had failed in an earlier run, and were left so.
        num_left_alone: rows whose picture has a text already, which is kept.
        num_tokens: tokens that were generated.
        has_too_many_errors: whether the run ended since so many rows failed that it was to end.
        first_error: path and message of the first row that failed.
        start_time: when the run began, by `time.monotonic`.
    """

    num_expected: int | None = None
    num_written: int = 0
    num_failed: int = 0
    num_reused: int = 0
    num_done_before: int = 0
    num_failed_before: int = 0
    num_left_alone: int = 0
    num_tokens: int = 0
    has_too_many_errors: bool = False
    first_error: str = ""
    start_time: float = field(default_factory=time.monotonic)

    @property
    def num_skipped(self) -> int:
        """Rows that needed no work."""
        return self.num_done_before + self.num_failed_before + self.num_left_alone

    @property
    def num_done(self) -> int:
        """Rows that need no more work."""
        return self.num_written + self.num_failed + self.num_skipped

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.start_time
