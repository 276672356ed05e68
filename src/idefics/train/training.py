"""`run`: one training from its settings to the adapter or the checkpoint that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from idefics.errors import BadPicture, BadSetting, IdeficsError, OutOfMemory
from idefics.generation.load_settings import set_num_threads
from idefics.generation.loading import read_generation_config
from idefics.placement.devices import allocation_errors_as_out_of_memory
from idefics.train.checkpoints import check_settings, find_checkpoint, remove_checkpoints
from idefics.train.dry_run import run_dry
from idefics.train.forecast import check_disk, check_memory, out_of_memory
from idefics.train.interrupts import finish_writing, stop_on_signals
from idefics.train.logs import JSONLinesLog
from idefics.train.pictures import FEATURES
from idefics.train.plan import TrainingPlan, plan_training
from idefics.train.processes import join_processes
from idefics.train.records import TrainingListener, ValidationRecord
from idefics.train.report import ReportWriter
from idefics.train.result import write_result
from idefics.train.rows import TrainingRow, TrainingRows
from idefics.train.samples import SampleAnswerer
from idefics.train.settings import TrainSettings
from idefics.train.trainee import Trainee, load_trainee
from idefics.train.trainer import Trainer
from idefics.weights.whole_folder import check_writable

LOG_FILE, REPORT_FILE = "log.jsonl", "report.html"  # in the folder of a training


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
    settings: TrainSettings,
    listeners: Sequence[TrainingListener] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
) -> TrainResult:
    """Trains a model on rows of pictures and texts, and writes an adapter, or with `method` "full" a checkpoint.

    All rows are read and checked, the memory is forecast and one batch is computed before the first step. A first
    Ctrl-C, or SIGTERM, ends training after the current step with a checkpoint. The log and the report are in
    `settings.training_folder`.

    Args:
        settings: all that determines the training.
        listeners: receive what happens.
        resume: continue from the latest checkpoint; the result equals that of a training without a break.
        dry_run: end before the first step; nothing is written, and of older files `resume` alone reads any.

    Raises:
        BadSetting: a setting is wrong, `out` is not empty, there is a checkpoint and `resume` is False or the other
            way round, or a loss is not a number.
        ModelError: the model is not found or not supported.
        BadPicture: a picture cannot be read.
        OutputError: the log or the report cannot be written, or the disk has no room for a checkpoint and the result.
        OutOfMemory: the forecast, or what is needed in fact, is more than is free.
        MissingExtra: as for `idefics.load`.
    """
    if isinstance(listeners, TrainingListener):
        raise BadSetting("listeners is a single listener: give a list of them")
    if settings.threads is not None:
        set_num_threads(settings.threads)
    processes = join_processes()
    listeners = listeners if processes.is_first else ()
    if resume or not dry_run:
        check_folders(settings, resume)
    plan = plan_training(settings)
    for listener in listeners:
        listener.on_forecast(plan.forecast)
    check_memory(plan.forecast, settings)
    if not dry_run:
        check_disk(plan.forecast, settings)
    trainee = load_trainee(plan.checkpoint, settings)
    trainer = Trainer(
        *(trainee.model, trainee.learned, plan.rows, settings, settings.training_folder),
        *(listeners, processes),
        weights=trainee.weights,
        disk_bytes=0 if dry_run else plan.forecast.kept.disk,
    )
    if resume:
        trainer.resume()
    _run_dry(plan, trainer)
    if dry_run:
        return _result(trainee, trainer, None, None, None)
    if not processes.is_first:
        return _train(trainee, trainer, plan.validation_rows, None)
    samples = plan.sample_rows(settings.num_samples)
    with _keep_log_and_report(plan, trainer, samples):
        return _train(trainee, trainer, plan.validation_rows, _make_answerer(plan, trainee, samples))


def _run_dry(plan: TrainingPlan, trainer: Trainer) -> None:
    """Computes one batch and tells the listeners; raises OutOfMemory with advice if it does not fit."""
    device = next(trainer.model.parameters()).device
    try:
        with allocation_errors_as_out_of_memory("one batch", plan.forecast.needed, device):
            record = run_dry(trainer, plan.longest, plan.forecast.sizes)
    except OutOfMemory as error:
        what = "one batch took more memory than was forecast: the training"
        raise out_of_memory(plan.forecast, trainer.settings, what) from error
    for listener in trainer.listeners:
        listener.on_dry_run(record)


@contextmanager
def _keep_log_and_report(
    plan: TrainingPlan, trainer: Trainer, samples: Sequence[TrainingRow]
) -> Iterator[None]:
    """Context in which the trainer writes its log and its report."""
    folder = trainer.folder
    log = JSONLinesLog(
        folder / LOG_FILE,
        trainer.settings,
        datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        facts=plan.forecast.facts(),
        last_step=trainer.step or None,
    )
    pictures = {row.name: row.read_thumbnails() for row in samples}
    with log, ReportWriter(folder / REPORT_FILE, log.history, pictures) as report:
        trainer.listeners = (log, report, *trainer.listeners)
        yield


def _make_answerer(plan: TrainingPlan, trainee: Trainee, samples: Sequence[TrainingRow]) -> SampleAnswerer:
    """What answers the sample rows."""
    banned_ids = read_generation_config(plan.checkpoint).banned_ids(plan.stop_ids)
    return SampleAnswerer(
        trainee.model,
        samples,
        plan.processor.tokenizer,
        plan.stop_ids,
        plan.processor.image_placeholder_ids | banned_ids,
    )


def check_folders(settings: TrainSettings, resume: bool) -> None:
    """Raises BadSetting if a training cannot write its result, or begin or continue as `resume` says."""
    out, folder = settings.out, settings.training_folder
    if out.exists() and not out.is_dir():
        raise BadSetting(f"{out} is a file: give a new folder")
    if out.exists() and any(out.iterdir()):
        if resume:
            raise BadSetting(f"{out} is written: this training is finished, and nothing is left to resume")
        raise BadSetting(f"{out} already holds other files: give a new folder, or empty it")
    checkpoint = find_checkpoint(folder)
    if resume and checkpoint is None:
        raise BadSetting(f"{folder} has no checkpoint: begin without resume=True")
    if checkpoint is not None and not resume:
        raise BadSetting(
            f"{checkpoint} is there: continue with resume=True, or remove {folder} to begin again"
        )
    check_writable(folder)
    if checkpoint is not None:
        check_settings(checkpoint, settings)
    else:  # what an unfinished training has left may be of another model
        shutil.rmtree(folder / FEATURES, ignore_errors=True)


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
    trainer = Trainer(
        *(trainee.model, trainee.learned, rows, settings, settings.training_folder, listeners),
        weights=trainee.weights,
    )
    trainer.resume()
    return _train(trainee, trainer, validation_rows, None)


def _train(
    trainee: Trainee,
    trainer: Trainer,
    validation_rows: TrainingRows | None,
    answerer: SampleAnswerer | None,
) -> TrainResult:
    """Runs the steps that are left, and writes the result."""
    settings = trainer.settings
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
                for listener in trainer.listeners:
                    listener.on_sample(record)

    with stop_on_signals(trainer):
        with torch.random.fork_rng():
            if trainer.step == 0:
                after_step()
            try:
                trainer.train(after_step)
            except IdeficsError as error:
                if trainer.step > 0 and not isinstance(
                    error, BadSetting
                ):  # which a loss that is no number is
                    with finish_writing(trainer):
                        raise _keep_learned(trainer, error) from None
                raise
        with finish_writing(trainer):
            if trainer.step < trainer.num_steps:
                return _result(trainee, trainer, None, trainer.save(), validation)
            if trainer.processes.is_first:
                _write_result(trainee, trainer)
    return _result(trainee, trainer, settings.out, None, validation)


def _keep_learned(trainer: Trainer, error: IdeficsError) -> IdeficsError:
    """Writes a checkpoint after an error, and returns the error; of a picture, with what to do.

    A picture may be mended before training continues, so that the checkpoint does not say which pictures there were.
    """
    if not isinstance(error, BadPicture):
        trainer.write_checkpoint()
        return error
    trainer.rows_digest = replace(trainer.rows_digest, pictures="")
    return BadPicture(f"{error}: mend it, then continue from {trainer.write_checkpoint()} with resume=True")


def _write_result(trainee: Trainee, trainer: Trainer) -> None:
    """Writes what was learned, and removes what a training needs on its way.

    A checkpoint is written before, so that nothing is lost if the result cannot be written.

    Raises:
        BadSetting: it cannot be written; the message says how to go on.
    """
    shutil.rmtree(trainer.folder / FEATURES, ignore_errors=True)
    with suppress(BadSetting):  # a disk that is too full for a checkpoint may have room for the result
        trainer.write_checkpoint()
    try:
        write_result(trainee, trainer.settings.out)
    except BadSetting as error:
        kept = find_checkpoint(trainer.folder)
        raise BadSetting(f"{error}; {kept} is kept: continue with resume=True") if kept else error from None
    remove_checkpoints(trainer.folder)


def _result(
    trainee: Trainee,
    trainer: Trainer,
    out: Path | None,
    checkpoint: Path | None,
    validation: ValidationRecord | None,
) -> TrainResult:
    return TrainResult(
        out=out,
        checkpoint=checkpoint,
        step=trainer.step,
        num_steps=trainer.num_steps,
        num_parameters=trainee.learned.num_parameters,
        validation=validation,
    )
