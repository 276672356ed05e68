"""One batch as a dry run: how fast a training will be, and what memory it takes, before it begins."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from idefics.batch.report import format_duration
from idefics.errors import format_bytes
from idefics.train.packing import pack_rows, split_by_tokens
from idefics.train.prepared_steps import PreparedBatch
from idefics.train.rows import RowSizes
from idefics.train.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What the dry run of one batch measured.

    Attributes:
        num_tokens: computed at once.
        tokens_per_second: of the forward and backward passes.
        peak_bytes: the most memory that was taken: on a GPU by tensors, else by the process; None: not known.
        seconds_left: an estimate for the steps that are left, the encoding of pictures included.
    """

    num_tokens: int
    tokens_per_second: float
    peak_bytes: int | None
    seconds_left: float

    def line(self) -> str:
        """The result for people."""
        memory = "" if self.peak_bytes is None else f"took {format_bytes(self.peak_bytes)} of memory, "
        return (
            f"one batch of {self.num_tokens:,} tokens: {memory}{self.tokens_per_second:,.0f} tokens/s; "
            f"the steps take about {format_duration(self.seconds_left)}, without validation and samples"
        )


def run_dry(trainer: Trainer, longest: Sequence[int], sizes: RowSizes) -> DryRun:
    """Computes the gradients of one batch of the longest rows, and forgets them: nothing is learned.

    Args:
        trainer: of the training.
        longest: the indices of its longest rows, as many as an optimizer step has.
        sizes: of its rows.

    Raises:
        BadPicture: a picture cannot be read.
        RuntimeError: of torch, where the batch does not fit.
    """
    rows = [trainer.rows[index] for index in longest]
    batch = pack_rows(next(split_by_tokens(rows, trainer.settings.micro_batch_tokens)))
    device = next(trainer.model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    frames_by_key = trainer.store.read_missing(batch.pictures)
    for picture in batch.pictures:
        trainer.store.frame_tensors(picture, frames_by_key)
    middle = time.perf_counter()
    num_tokens = len(batch.ids)
    trainer.compute_gradients([PreparedBatch(batch, frames_by_key)], max(1, len(batch.target_ids)))
    trainer.optimizer.zero_grad()
    rate = num_tokens / (time.perf_counter() - middle)
    epochs = trainer.schedule.epoch_after(trainer.num_steps) - trainer.schedule.epoch_after(trainer.step)
    image_tokens_left = min(sizes.num_distinct_image_tokens, epochs * sizes.num_image_tokens)
    image_tokens_left = max(0, image_tokens_left - len(batch.image_token_positions))
    seconds_per_image_token = (middle - start) / max(1, len(batch.image_token_positions))
    seconds = epochs * sizes.num_tokens / rate + image_tokens_left * seconds_per_image_token
    return DryRun(
        num_tokens=num_tokens,
        tokens_per_second=rate,
        peak_bytes=_peak_bytes(device),
        seconds_left=seconds / trainer.processes.count,
    )


def _peak_bytes(device: torch.device) -> int | None:
    """The most memory that was in use so far; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
