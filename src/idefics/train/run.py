"""`run`: one training from its settings to the adapter or the checkpoint that it writes."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from idefics.errors import BadSetting
from idefics.train.checkpoints import find_checkpoint, training_folder
from idefics.train.records import TrainingListener, ValidationRecord
from idefics.train.result import write_result
from idefics.train.rows import TrainingRows
from idefics.train.settings import TrainSettings
from idefics.train.trainee import Trainee, find_trainable_checkpoint, load_trainee, make_processor
from idefics.train.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to.

    Attributes:
        out: the folder of the adapter or checkpoint; None: it was interrupted, and continues with `resume`.
        checkpoint: where it continues from; None: it is finished.
        step, num_steps: optimizer steps that are done, and of the whole training.
        num_parameters: how many numbers were learned.
        validation: of the validation rows at the end; None without them.
    """

    out: Path | None
    checkpoint: Path | None
    step: int
    num_steps: int
    num_parameters: int
    validation: ValidationRecord | None


def run(
    settings: TrainSettings, listeners: Sequence[TrainingListener] = (), *, resume: bool = False
) -> TrainResult:
    """Trains a model on rows of pictures and texts, and writes an adapter, or with `method` "full" a checkpoint.

    A first Ctrl-C ends training after the current step with a checkpoint.

    Args:
        settings: all that determines the training.
        listeners: receive what happens.
        resume: continue from the latest checkpoint; the result equals that of a training without a break.

    Raises:
        BadSetting: a setting is wrong, `out` is not empty, there is a checkpoint and `resume` is False or the other
            way round, or a loss is not a number.
        ModelError: the model is not found or not supported.
        BadPicture: a picture cannot be read.
        OutOfMemory, MissingExtra: as for `idefics.load`.
    """
    from idefics.train.data import read_training_rows

    check_folders(settings.out, resume)
    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    rows = read_training_rows(settings.data, processor, settings)
    validation_rows = None if settings.val is None else read_training_rows(settings.val, processor, settings)
    return train_rows(load_trainee(checkpoint, settings), rows, validation_rows, settings, listeners)


def check_folders(out: Path, resume: bool) -> None:
    """Raises BadSetting if a training cannot write its result, or begin or continue as `resume` says."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSetting(f"{out} already holds other files: give a new folder, or empty it")
    checkpoint = find_checkpoint(training_folder(out))
    if resume and checkpoint is None:
        raise BadSetting(f"{training_folder(out)} has no checkpoint: begin without resume")
    if checkpoint is not None and not resume:
        raise BadSetting(
            f"{checkpoint} is there: continue with resume, or remove {training_folder(out)} to begin again"
        )


def train_rows(
    trainee: Trainee,
    rows: TrainingRows,
    validation_rows: TrainingRows | None,
    settings: TrainSettings,
    listeners: Sequence[TrainingListener] = (),
) -> TrainResult:
    """Trains a loaded model on rows that are read, and writes the result; continues from a checkpoint if there is one.

    Raises:
        BadSetting, BadPicture: as for `run`.
    """
    folder = training_folder(settings.out)
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, folder, listeners)
    trainer.resume()
    validation: ValidationRecord | None = None

    def after_step() -> None:
        nonlocal validation
        is_due = settings.validate_every and trainer.step % settings.validate_every == 0
        if validation_rows is not None and (is_due or trainer.step == trainer.num_steps):
            validation = trainer.validate(validation_rows)

    with _stop_on_interrupt(trainer), torch.random.fork_rng():
        if validation_rows is not None and trainer.step == 0:
            validation = trainer.validate(validation_rows)
        trainer.train(after_step)
    is_finished = trainer.step == trainer.num_steps
    checkpoint = None if is_finished else trainer.save()
    if is_finished:
        write_result(trainee, settings.out)
        shutil.rmtree(folder, ignore_errors=True)
    return TrainResult(
        out=settings.out if is_finished else None,
        checkpoint=checkpoint,
        step=trainer.step,
        num_steps=trainer.num_steps,
        num_parameters=trainee.learned.num_parameters,
        validation=validation,
    )


@contextmanager
def _stop_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """Context in which the first SIGINT ends training after the current step; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stops = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
