"""`Trainer`: the training loop over a model, its learned parameters and rows of data."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from idefics.errors import BadSetting
from idefics.models.vision_language_model import VisionLanguageModel
from idefics.train.checkpoints import (
    TrainingState,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    settings_to_json,
)
from idefics.train.forward import compute_token_losses
from idefics.train.interrupts import finish_writing
from idefics.train.optimizers import make_optimizer
from idefics.train.packing import pack_rows, split_by_tokens
from idefics.train.pictures import DISK_BYTES, FEATURES, PictureStore
from idefics.train.prepared_steps import PreparedBatch, PreparedStep
from idefics.train.processes import ALONE, Processes
from idefics.train.records import StepRecord, TrainingListener, ValidationRecord
from idefics.train.rows import TrainingRows
from idefics.train.schedule import dropout_seed, make_schedule
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters

SAVE_SECONDS = 600  # between checkpoints, where the settings say no number of steps
STEPS_IN_ESTIMATE = 20  # the latest ones, of which the time that is left is estimated
VALIDATION_ROWS_AT_ONCE = 256  # sorted by length and packed together


class Trainer:
    """Trains the learned parameters of a model.

    Args:
        model: on its device.
        learned: its parameters that learn.
        rows: the training data.
        settings: of the training.
        folder: for checkpoints and features of pictures.
        listeners: receive what happens.
        processes: those that train together, of which the first alone writes checkpoints.
        weights: identifies the model's weights; see `TrainingState`.
        disk_bytes: how much of features may be in files, of all processes together; 0: none are read either.

    Attributes:
        step: optimizer steps that are done.
        num_steps: of the whole training.
        rows_digest: what checkpoints say of the rows.
        stops: whether training stops after the current step; another thread or a signal handler may set it.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        learned: LearnedParameters,
        rows: TrainingRows,
        settings: TrainSettings,
        folder: Path,
        listeners: Sequence[TrainingListener] = (),
        processes: Processes = ALONE,
        *,
        weights: str = "",
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self.model, self.learned, self.rows, self.settings = model, learned, rows, settings
        self.folder, self.listeners, self.processes = folder, listeners, processes
        self.schedule = make_schedule(settings, len(rows))
        self.num_steps = self.schedule.num_steps
        self.optimizer = make_optimizer(learned, settings)
        self.store = PictureStore(model, folder / FEATURES, disk_bytes=disk_bytes // processes.count)
        self.rows_digest, self._weights = rows.digest(), weights
        self._saved_time = time.monotonic()
        self.step, self.stops, self._others_stop = 0, False, False
        device = next(model.parameters()).device
        is_mixed = settings.method == "full" and settings.dtype != "float32" and device.type == "cuda"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_mixed)
        self._step_seconds = deque[float](maxlen=STEPS_IN_ESTIMATE)

    def resume(self) -> None:
        """Continues from the latest checkpoint in the folder, if there is one.

        Raises:
            BadSetting: it is of another training.
        """
        if (path := find_checkpoint(self.folder)) is not None:
            self.step = load_checkpoint(path, self._state(), self.learned, self.optimizer).step

    def save(self) -> Path:
        """Writes a checkpoint, in the first process, tells the listeners, and returns its folder."""
        path = self.write_checkpoint()
        if self.processes.is_first:
            for listener in self.listeners:
                listener.on_checkpoint(self.step, str(path))
        return path

    def write_checkpoint(self) -> Path:
        """Writes a checkpoint, in the first process, and returns its folder."""
        self._saved_time = time.monotonic()
        if not self.processes.is_first:
            return self.folder
        return save_checkpoint(self.folder, self._state(), self.learned, self.optimizer)

    def _state(self) -> TrainingState:
        return TrainingState(
            step=self.step,
            rows=self.rows_digest,
            weights=self._weights,
            settings=settings_to_json(self.settings),
        )

    def train(self, after_step: Callable[[], None]) -> None:
        """Runs the steps that are left, up to the last one or until `stops` is set; saves as the settings say.

        Args:
            after_step: called after each step.

        Raises:
            BadSetting: a loss is not a number; the error names the row.
            BadPicture: a picture cannot be read.
        """
        for number, prepared in self._prepare_ahead():
            if self._others_stop if self.processes.count > 1 else self.stops:
                break
            record = self.run_step(number, prepared)
            for listener in self.listeners:
                listener.on_step(record)
            after_step()
            if self._is_checkpoint_due():
                with finish_writing(self):
                    self.save()

    def _is_checkpoint_due(self) -> bool:
        """Whether a checkpoint is written after the current step; not at the end, when the result is written."""
        if self.step == self.num_steps:
            return False
        if self.settings.save_every:
            return self.step % self.settings.save_every == 0
        return time.monotonic() - self._saved_time >= SAVE_SECONDS

    def prepare_step(self, step: int) -> PreparedStep:
        """Reads the rows of a step, and packs those of this process."""
        rows = [self.rows[index] for index in self.schedule.rows_of_step(step)]
        own = sorted(rows, key=len, reverse=True)[self.processes.rank :: self.processes.count]
        batches = [pack_rows(some) for some in split_by_tokens(own, self.settings.micro_batch_tokens)]
        return PreparedStep(
            [PreparedBatch(batch, self.store.read_missing(batch.pictures)) for batch in batches],
            sum(map(len, rows)),
            sum(row.num_targets for row in rows),
        )

    def compute_gradients(self, batches: Sequence[PreparedBatch], num_targets: int) -> float:
        """Adds the gradients of the sum of the losses of learned tokens, over `num_targets`; returns that, in nats.

        Raises:
            BadSetting: a loss is not a number.
        """
        total = 0.0
        self.model.train()
        for batch, frames_by_key in batches:
            with self._autocast:
                losses = compute_token_losses(self.model, batch, self.store, frames_by_key).losses
            loss = losses.sum() / num_targets
            if not math.isfinite(value := loss.item()):
                raise self._not_finite("loss", batch.names_of(~losses.isfinite()), value)
            if loss.requires_grad:  # not where the rows reach nothing that learns, such as the connector
                loss.backward()
            total += value
        return total

    def run_step(self, number: int, prepared: PreparedStep) -> StepRecord:
        """Runs one optimizer step, whose number counts from 1."""
        start = time.perf_counter()
        torch.manual_seed(dropout_seed(self.settings.seed, number, self.processes.rank))
        loss = self._compute_all_gradients(prepared)
        norm = float(clip_grad_norm_(self.learned.by_name.values(), self.settings.max_gradient_norm))
        if not math.isfinite(norm):
            names = [name for batch, _ in prepared.batches for name in batch.names]
            raise self._not_finite("gradient", names, norm)
        learning_rate = self.schedule.learning_rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = number
        seconds = time.perf_counter() - start
        self._step_seconds.append(seconds)
        return StepRecord(
            step=number,
            num_steps=self.num_steps,
            epoch=self.schedule.epoch_after(number),
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=norm,
            num_tokens=prepared.num_tokens,
            num_targets=prepared.num_targets,
            seconds=seconds,
            seconds_left=sum(self._step_seconds) / len(self._step_seconds) * (self.num_steps - number),
        )

    def _compute_all_gradients(self, prepared: PreparedStep) -> float:
        """Computes the gradients of a step's mean loss over all processes, and returns the loss."""
        error: BadSetting | None = None
        loss = math.nan
        try:
            loss = self.compute_gradients(prepared.batches, max(1, prepared.num_targets))
        except BadSetting as one:  # the other processes wait for this one
            error = one
        parameters = self.learned.by_name.values()
        total, num_stops = self.processes.sum_gradients(parameters, loss, float(self.stops))
        self._others_stop = num_stops > 0
        if error is not None:
            raise error
        if not math.isfinite(total):
            raise self._not_finite("loss", ["a row of another process"], total)
        return total

    @torch.no_grad()
    def validate(self, rows: TrainingRows) -> ValidationRecord:
        """Computes the loss of validation rows, and how many of their tokens are the most likely ones."""
        self.model.eval()
        loss, num_right, num_targets, num_right_rows = 0.0, 0, 0, 0
        for start in range(0, len(rows), VALIDATION_ROWS_AT_ONCE):
            numbers = range(start, min(len(rows), start + VALIDATION_ROWS_AT_ONCE))
            some = [rows[index] for index in numbers[self.processes.rank :: self.processes.count]]
            for micro in split_by_tokens(some, self.settings.micro_batch_tokens):
                batch = pack_rows(micro)
                with self._autocast:
                    losses, is_right = compute_token_losses(self.model, batch, self.store)
                loss += losses.double().sum().item()
                num_right += int(is_right.sum())
                num_targets += len(losses)
                num_right_rows += len(micro) - len(batch.names_of(~is_right))
        totals = self.processes.sum(loss, num_right, num_right_rows, num_targets)
        all_targets = max(1.0, totals[3])
        record = ValidationRecord(
            step=self.step,
            loss=totals[0] / all_targets,
            token_accuracy=totals[1] / all_targets,
            row_accuracy=totals[2] / max(1, len(rows)),
            num_rows=len(rows),
        )
        for listener in self.listeners:
            listener.on_validation(record)
        return record

    def _prepare_ahead(self) -> Iterator[tuple[int, PreparedStep]]:
        """The steps that are left, and their batches; each is read in a thread while the one before is computed."""
        numbers = range(self.step + 1, self.num_steps + 1)
        with ThreadPoolExecutor(1, thread_name_prefix="idefics-prepare") as pool:
            pending: deque[Future[PreparedStep]] = deque()
            try:
                for number in numbers:
                    if not pending:
                        pending.append(pool.submit(self.prepare_step, number))
                    if number < self.num_steps:
                        pending.append(pool.submit(self.prepare_step, number + 1))
                    yield number, pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _not_finite(self, what: str, names: Sequence[str], value: float) -> BadSetting:
        """The error about a loss or a gradient that is not a number; writes a checkpoint if there is none."""
        names = list(dict.fromkeys(names))
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        path = find_checkpoint(self.folder)
        if path is None and self.step > 0:
            path = self.save()
        smaller = f"learning_rate={self.schedule.peak / 4:g}"
        advice = (
            f"begin again with {smaller}" if path is None else f"go on from {path} with resume=True {smaller}"
        )
        return BadSetting(
            f"the {what} of {shown} is {value} in step {self.step + 1}: {advice}; or mend or leave out these rows, and "
            "give a new out"
        )
