"""What training reports while it runs, and `TrainingListener`, which receives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.train.dry_run import DryRun
    from idefics.train.forecast import Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: counts from 1.
        num_steps: of the whole training.
        epoch: how many times all rows were seen, a fraction included.
        loss: mean over the step's learned tokens, in nats.
        learning_rate: of this step.
        gradient_norm: before clipping.
        num_tokens, num_targets: tokens computed, and learned, in this step.
        seconds: duration of this step.
        seconds_left: an estimate for the rest of the training.
    """

    step: int
    num_steps: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    num_targets: int
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """The validation rows after a step.

    Attributes:
        step: 0 before training.
        loss: mean over all learned tokens, in nats.
        token_accuracy: share of learned tokens that are the most likely ones.
        row_accuracy: share of rows in which all learned tokens are the most likely ones: greedy decoding would write
            exactly these answers.
        num_rows: validated rows.
    """

    step: int
    loss: float
    token_accuracy: float
    row_accuracy: float
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """What the model answers to one of the sample rows.

    Attributes:
        step: 0 before training.
        row: the row's name.
        prompt: its text up to the answer, for people.
        reference: the row's own answer.
        answer: the model's.
    """

    step: int
    row: str
    prompt: str
    reference: str
    answer: str


class TrainingListener:
    """Receives what happens in training; the methods of this base class do nothing.

    The progress line, the logs and the report are listeners.
    """

    def on_forecast(self, forecast: Forecast) -> None:
        """Before the weights are loaded."""

    def on_dry_run(self, record: DryRun) -> None:
        """Before the first step: one batch was computed."""

    def on_step(self, record: StepRecord) -> None:
        """After each optimizer step."""

    def on_validation(self, record: ValidationRecord) -> None:
        """After the validation rows were computed."""

    def on_sample(self, record: SampleRecord) -> None:
        """After a sample row was answered."""

    def on_checkpoint(self, step: int, folder: str) -> None:
        """After a checkpoint was written."""

    def on_stop(self) -> None:
        """Training was interrupted, and ends after the current step."""

    def on_stop_while_writing(self) -> None:
        """Training was interrupted while what was learned is written, which is finished first."""
