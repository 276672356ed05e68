"""Which rows an optimizer step learns from, and how fast: functions of the step's number alone.

So a training continues from a checkpoint as if it had not been interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from idefics.errors import BadSetting
from idefics.train.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a training.

    Attributes:
        num_rows: of the training data.
        num_seen_rows: how many rows all steps together learn from, a row again in each epoch.
        batch_size: rows of a step; the last may have fewer.
        warmup_steps: steps of linear warm-up.
        peak: the highest learning rate.
        seed: of the order of rows.
    """

    num_rows: int
    num_seen_rows: int
    batch_size: int
    warmup_steps: int
    peak: float
    seed: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return -(-self.num_seen_rows // self.batch_size)

    def rows_of_step(self, step: int) -> list[int]:
        """The numbers of the rows of a step, which counts from 1. Each epoch has an order of its own."""
        start = (step - 1) * self.batch_size
        indices = range(start, min(start + self.batch_size, self.num_seen_rows))
        return [
            int(_order(self.num_rows, self.seed, index // self.num_rows)[index % self.num_rows])
            for index in indices
        ]

    def epoch_after(self, step: int) -> float:
        """How many times all rows were seen after a step."""
        return min(step * self.batch_size, self.num_seen_rows) / self.num_rows

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: linear to the peak, then a half cosine (arXiv 1608.03983) to zero."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps + 1)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


@lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def make_schedule(settings: TrainSettings, num_rows: int) -> Schedule:
    """The schedule of a training.

    Raises:
        BadSetting: there are no rows, or no steps.
    """
    if num_rows == 0:
        raise BadSetting(f"{settings.data} has no rows to learn from: give data with at least one")
    seen = settings.epochs * num_rows if settings.steps is None else settings.steps * settings.batch_size
    num_steps = math.ceil(seen / settings.batch_size)
    if num_steps < 1:
        raise BadSetting(f"epochs is {settings.epochs} and steps is {settings.steps}: give at least one step")
    default = 2e-5 if settings.method == "full" else 2e-4
    return Schedule(
        num_rows=num_rows,
        num_seen_rows=math.ceil(seen),
        batch_size=settings.batch_size,
        warmup_steps=min(settings.warmup_steps, num_steps // 2),
        peak=default if settings.learning_rate is None else settings.learning_rate,
        seed=settings.seed,
    )


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed for each step and process. It has 32 bits: torch's generator on a CPU reads no others."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
