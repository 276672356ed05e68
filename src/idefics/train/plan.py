"""What is known of a training before its weights are loaded: the rows, all checked, and the forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from idefics import models
from idefics.generation.load_settings import ComputePlan
from idefics.generation.loading import collect_stop_ids
from idefics.models import Checkpoint
from idefics.placement.devices import free_memory, get_available_device
from idefics.processing.processor import Processor
from idefics.train.data.training_rows import read_training_rows
from idefics.train.forecast import Forecast, forecast_training
from idefics.train.pictures import FEATURES, find_disk_space
from idefics.train.rows import RowSizes, TrainingRow, TrainingRows
from idefics.train.schedule import make_schedule
from idefics.train.settings import TrainSettings
from idefics.train.trainable import make_trainable
from idefics.train.trainee import find_trainable_checkpoint, make_processor, plan_training_computation

SAMPLE_CANDIDATES = 64  # rows of which those to be shown are chosen


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPlan:
    """A training that can begin.

    Attributes:
        checkpoint: of the model, not loaded.
        processor: of the checkpoint.
        stop_ids: ids that end an answer.
        rows, validation_rows: read and checked; None: there is nothing to validate with.
        longest: the indices of the rows with the most tokens, of one optimizer step.
        forecast: what the training will need.
    """

    checkpoint: Checkpoint
    processor: Processor
    stop_ids: frozenset[int]
    rows: TrainingRows
    validation_rows: TrainingRows | None
    longest: Sequence[int]
    forecast: Forecast

    def sample_rows(self, num_samples: int) -> list[TrainingRow]:
        """Rows whose answers are shown, of the validation rows if there are any.

        They are at equal distances, as far as their answers differ; others take the place of equal ones.
        """
        rows = self.validation_rows or self.rows

        def spread(count: int) -> list[int]:
            count = min(count, len(rows))
            return [index * len(rows) // count for index in range(count)]

        candidates = dict.fromkeys(
            (*spread(num_samples), *(spread(SAMPLE_CANDIDATES) if num_samples else ()))
        )
        index_by_answer: dict[bytes, int] = {}
        for index in candidates:
            row = rows[index]
            index_by_answer.setdefault(row.ids[row.is_target].tobytes(), index)
        chosen = list(dict.fromkeys((*index_by_answer.values(), *candidates)))[:num_samples]
        return [rows[index] for index in sorted(chosen)]


def plan_training(settings: TrainSettings) -> TrainingPlan:
    """Finds the checkpoint, reads and checks all rows, and forecasts the training.

    Raises:
        BadSetting: there are no rows, or a setting does not fit the model.
        BadRequest: the data cannot be read; too long rows are all listed.
        ModelError: the model is not found or not supported.
    """
    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    stop_ids = collect_stop_ids(checkpoint, processor)
    rows = read_training_rows(settings.data, checkpoint, processor, settings)
    validation_rows = (
        None if settings.val is None else read_training_rows(settings.val, checkpoint, processor, settings)
    )
    counts = rows.count_tokens()
    schedule = make_schedule(settings, len(rows))
    device = get_available_device(settings.device)
    module = models.build_on_meta_device(checkpoint)
    computation = plan_training_computation(module, checkpoint, settings, device)
    learned = make_trainable(module, settings)
    forecast = forecast_training(
        *(module, checkpoint.config, learned),
        RowSizes.of(counts, None if validation_rows is None else validation_rows.count_tokens()),
        settings,
        schedule=schedule,
        dtype=computation.dtype,
        weight_dtype=_weight_dtype(checkpoint, computation),
        device=device,
        free=free_memory(device),
        disk=find_disk_space(settings.training_folder / FEATURES),
    )
    longest = np.argsort(-counts.lengths, kind="stable")[: settings.batch_size].tolist()
    return TrainingPlan(checkpoint, processor, stop_ids, rows, validation_rows, longest, forecast)


def _weight_dtype(checkpoint: Checkpoint, computation: ComputePlan) -> torch.dtype:
    """The dtype in which most frozen weights are stored."""
    if isinstance(computation.storage, torch.dtype):
        return computation.storage
    if computation.storage is None:
        return computation.dtype
    return torch.float32 if checkpoint.config.dtype in (None, "float32") else torch.bfloat16
