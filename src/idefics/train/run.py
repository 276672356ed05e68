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
from idefics.generation.loading import collect_stop_ids, read_generation_config
from idefics.train.checkpoints import find_checkpoint, remove_checkpoints
from idefics.train.records import TrainingListener, ValidationRecord
from idefics.train.result import write_result
from idefics.train.rows import TrainingRows
from idefics.train.samples import SampleAnswerer
from idefics.train.settings import TrainSettings
from idefics.train.trainee import Trainee, find_trainable_checkpoint, load_trainee, make_processor
from idefics.train.trainer import FEATURES, Trainer


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
    from idefics.train.data.training_rows import read_training_rows

    check_folders(settings, resume)
    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    stop_ids = collect_stop_ids(checkpoint, processor)
    rows, validation_rows = (
        None if path is None else read_training_rows(path, processor, stop_ids, settings)
        for path in (settings.data, settings.val)
    )
    assert rows is not None
    trainee = load_trainee(checkpoint, settings)
    shown = validation_rows or rows
    answerer = SampleAnswerer(
        trainee.model,
        [shown[index] for index in range(min(settings.num_samples, len(shown)))],
        processor.tokenizer,
        stop_ids,
        processor.image_placeholder_ids | read_generation_config(checkpoint).banned_ids(stop_ids),
    )
    return train_rows(trainee, rows, validation_rows, settings, listeners, answerer)


def check_folders(settings: TrainSettings, resume: bool) -> None:
    """Raises BadSetting if a training cannot write its result, or begin or continue as `resume` says."""
    out, folder = settings.out, settings.training_folder
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSetting(f"{out} already holds other files: give a new folder, or empty it")
    checkpoint = find_checkpoint(folder)
    if resume and checkpoint is None:
        raise BadSetting(f"{folder} has no checkpoint: begin without resume")
    if checkpoint is not None and not resume:
        raise BadSetting(f"{checkpoint} is there: continue with resume, or remove {folder} to begin again")


def train_rows(
    trainee: Trainee,
    rows: TrainingRows,
    validation_rows: TrainingRows | None,
    settings: TrainSettings,
    listeners: Sequence[TrainingListener] = (),
    answerer: SampleAnswerer | None = None,
) -> TrainResult:
    """Trains a loaded model on rows that are read, and writes the result; continues from a checkpoint if there is one.

    Args:
        answerer: answers the sample rows; None: there are none.

    Raises:
        BadSetting, BadPicture: as for `run`.
    """
    folder = settings.training_folder
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, folder, listeners)
    trainer.resume()
    validation: ValidationRecord | None = None

    def is_due(every: int) -> bool:
        is_end = trainer.step in (0, trainer.num_steps)
        return is_end or (every > 0 and trainer.step % every == 0)

    def after_step() -> None:
        nonlocal validation
        if validation_rows is not None and is_due(settings.validate_every):
            validation = trainer.validate(validation_rows)
        if answerer is not None and is_due(settings.sample_every):
            for record in answerer.answer(trainer.step):
                for listener in listeners:
                    listener.on_sample(record)

    with _stop_on_interrupt(trainer), torch.random.fork_rng():
        if trainer.step == 0:
            after_step()
        trainer.train(after_step)
    is_finished = trainer.step == trainer.num_steps
    checkpoint = None if is_finished else trainer.save()
    if is_finished:
        write_result(trainee, settings.out)
        remove_checkpoints(folder)
        shutil.rmtree(folder / FEATURES, ignore_errors=True)
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
