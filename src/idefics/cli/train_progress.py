"""The progress of `idefics train`: a bar on a terminal, else a plain line every ten seconds; and what it finds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

from idefics.cli.output import OutputWriter
from idefics.cli.run_progress import RegularProgress, format_duration
from idefics.train.records import SampleRecord, StepRecord, TrainingListener, ValidationRecord

if TYPE_CHECKING:
    from idefics.train.dry_run import DryRun
    from idefics.train.forecast import Forecast

NUM_AVERAGED_STEPS = 20
MAX_SAMPLE_CHARACTERS = 120
SLOW_RATIO, NUM_JUDGED_STEPS = (
    5,
    5,
)  # how many times as slow as one batch before training so many steps are named


class TrainProgress(RegularProgress, TrainingListener):
    """Shows how far a training is, on standard error."""

    def __init__(self, writer: OutputWriter) -> None:
        super().__init__(writer)
        self._recent: deque[StepRecord] = deque(maxlen=NUM_AVERAGED_STEPS)
        self._expected_rate = 0.0  # tokens a second of the dry run, until steps were found slow
        writer.progress.start("Reading the rows")

    def on_forecast(self, forecast: Forecast) -> None:
        """Prints the forecast."""
        for line in forecast.lines():
            self._writer.print_status(line)
        self._writer.progress.start("Loading the model, and computing one batch")

    def on_dry_run(self, record: DryRun) -> None:
        """Prints what one batch took."""
        self._expected_rate = record.tokens_per_second
        self._writer.print_status(record.line())
        self._writer.progress.start("Answering before training")

    def on_step(self, record: StepRecord) -> None:
        """Shows the step, if one was not shown a moment ago; the last one always."""
        if not self._recent:
            self._writer.progress.stop()  # the bar takes the place of what was shown before
        self._recent.append(record)
        self._name_slow_steps()
        if record.step == record.num_steps or self.is_due(time.monotonic()):
            self.show_line(self.describe(), record.step, record.num_steps)

    def describe(self) -> str:
        """One line: the step, the mean loss and tokens a second of the latest steps, the time left."""
        last = self._recent[-1]
        loss = sum(one.loss for one in self._recent) / len(self._recent)
        return (
            f"step {last.step:,} of {last.num_steps:,}, loss {loss:.3f}, {_rate(self._recent):,.0f} tokens/s, "
            f"{format_duration(last.seconds_left)} left"
        )

    def _name_slow_steps(self) -> None:
        """Says once that steps are slow; not in the first epoch, in which pictures are encoded."""
        judged = [one for one in self._recent if one.epoch > 1]
        if len(judged) < NUM_JUDGED_STEPS:
            return
        if (ratio := self._expected_rate / max(_rate(judged), 1e-9)) > SLOW_RATIO:
            self._expected_rate = 0.0
            self._writer.print_status(
                f"steps are {ratio:.0f} times as slow as one batch was before training: if other programs keep the "
                "processor busy, press Ctrl-C and go on with --resume --threads 1"
            )

    def on_validation(self, record: ValidationRecord) -> None:
        """Prints the loss and the accuracies."""
        self._writer.print_status(
            f"{_when(record.step)}: validation loss {record.loss:.3f}, {record.row_accuracy:.1%} of "
            f"{record.num_rows:,} answers right, {record.token_accuracy:.1%} of their tokens"
        )

    def on_sample(self, record: SampleRecord) -> None:
        """Prints the answer, and the right one."""
        self._writer.print_status(
            f"{_when(record.step)}: {record.row}: {_shorten(record.answer)!r} (right: {_shorten(record.reference)!r})"
        )

    def on_checkpoint(self, step: int, folder: str) -> None:
        """Says where the checkpoint is."""
        self._writer.print_status(f"{_when(step)}: checkpoint in {folder}")

    def on_stop(self) -> None:
        """Says that the step is finished first."""
        self._writer.print_status(
            "finishing the step in hand; Ctrl-C again stops at once, and loses what follows the last checkpoint"
        )

    def on_stop_while_writing(self) -> None:
        """Says that what was learned is written first."""
        self._writer.print_status("writing what was learned, which takes a moment")


def _rate(steps: Collection[StepRecord]) -> float:
    """Tokens a second of some steps."""
    return sum(one.num_tokens for one in steps) / max(sum(one.seconds for one in steps), 1e-9)


def _when(step: int) -> str:
    return f"after {step:,} steps" if step else "before training"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else f"{text[:MAX_SAMPLE_CHARACTERS]}..."
