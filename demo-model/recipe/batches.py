"""Training batches as tensors, made of samples of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idefics.config import ImageProcessorConfig
from picturebook import CATALOG, NUM_CLASSES, Scene, cell_class_ids, draw_scene, make_sample
from picturebook.things import COLOR_RGB, FIRST_SHAPE_ID, GROUND_RGB, SHAPES, shape_and_color

from .encoding import EncodedSample, SampleEncoder

KIND_NAMES = ["none", *(CATALOG[what].name for what in range(1, FIRST_SHAPE_ID)), *SHAPES]
NUM_KINDS = len(KIND_NAMES)
_SHAPE_COLOR_PAIRS = [shape_and_color(what) for what in range(FIRST_SHAPE_ID, NUM_CLASSES)]
KIND_BY_CLASS = torch.tensor(
    [*range(FIRST_SHAPE_ID), *(FIRST_SHAPE_ID + list(SHAPES).index(shape) for shape, _ in _SHAPE_COLOR_PAIRS)]
)
COLOR_BY_CLASS = torch.tensor(
    [-100] * FIRST_SHAPE_ID + [list(COLOR_RGB).index(color) for _, color in _SHAPE_COLOR_PAIRS]
)
BATCHES_PER_POOL = 4  # the samples of so many batches are sorted by length and then split into batches


@dataclass(frozen=True)
class CellLabels:
    """The contents of the nine cells of P pictures: the labels of the vision losses.

    Attributes:
        kinds: (P, 9) 0 for an empty cell, then things, then shapes whatever their colour.
        colors: (P, 9) the colour of a shape, -100 elsewhere; separate from `kinds`, so that unseen pairs are possible.
        sizes: (P, 9) 0 nothing, 1 small, 2 large.
        num_same: (P, 9) number of cells with the same content, this one included; 0 for an empty cell.
        num_same_kind: (P, 9) as `num_same`, but shapes of any colour count as equal.
        mention_order: (P, 9) position of the content in an inventory: 1 for the first in reading order and all equal
            ones, 2 for the next; 0 for an empty cell.
        ground_and_time: (P,) ground and time of day.
    """

    kinds: Tensor
    colors: Tensor
    sizes: Tensor
    num_same: Tensor
    num_same_kind: Tensor
    mention_order: Tensor
    ground_and_time: Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """B sequences of T tokens, padded on the right and flattened, and the P pictures of all of them.

    Attributes:
        num_sequences: B.
        ids: (B*T,).
        targets: (B*T,) the next id where it contributes to the loss, else -100.
        weights: (B*T,) weight of each target in the loss: less in a long answer than in a short one.
        image_index: (B*T,) index of the token's picture among the P, or -1.
        frames: (P, 3, side, side).
        labels: of the P pictures.
    """

    num_sequences: int
    ids: Tensor
    targets: Tensor
    weights: Tensor
    image_index: Tensor
    frames: Tensor
    labels: CellLabels


def render_frames(scenes: list[Scene], plan: ImageProcessorConfig) -> Tensor:
    """Draws scenes at the vision tower's size and normalises them: (P, 3, side, side)."""
    pixels = np.stack([draw_scene(scene) for scene in scenes]).astype(np.float32) * plan.rescale_factor
    pixels = (pixels - np.array(plan.mean, np.float32)) / np.array(plan.std, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def compute_cell_labels(scenes: list[Scene]) -> CellLabels:
    """The labels of the cells of P scenes."""
    cells = torch.from_numpy(np.stack([cell_class_ids(scene) for scene in scenes]))
    kinds, colors, sizes = KIND_BY_CLASS[cells], COLOR_BY_CLASS[cells], torch.zeros_like(cells)
    for row, scene in enumerate(scenes):
        for item in scene.items:
            sizes[row, item.cell] = 1 + (item.size == "large")
    names = list(GROUND_RGB)
    grounds = torch.tensor([names.index(scene.ground) * 2 + scene.is_night for scene in scenes])
    filled, same = cells > 0, cells[:, :, None] == cells[:, None]  # (P, 9), (P, 9, 9)
    num_same, num_same_kind = same.sum(-1) * filled, (kinds[:, :, None] == kinds[:, None]).sum(-1) * filled
    first = same.int().argmax(-1)  # (P, 9) the first cell that shows the same
    is_first_mention = (first == torch.arange(first.shape[1])) & filled
    mention_order = is_first_mention.cumsum(-1).gather(1, first) * filled
    return CellLabels(kinds, colors, sizes, num_same, num_same_kind, mention_order, grounds)


def target_weights(is_target: np.ndarray) -> np.ndarray:
    """A weight for each token of a row: its answer's length to the power of -3/4, 0 outside answers.

    With equal weights the two tokens of "Yes." would contribute little next to forty of a caption.
    """
    edges = np.flatnonzero(np.diff(is_target, prepend=False, append=False))
    weights = np.zeros(len(is_target), np.float32)
    for start, end in edges.reshape(-1, 2):
        weights[start:end] = (end - start) ** -0.75
    return weights


def collate(samples: list[EncodedSample], plan: ImageProcessorConfig, pad_id: int) -> TrainingBatch:
    """Pads samples on the right, where causal attention does not see it, and numbers their pictures consecutively."""
    rows, length = len(samples), max(len(sample.ids) for sample in samples)
    ids = np.full((rows, length), pad_id)
    targets = np.full((rows, length), -100)
    weights = np.zeros((rows, length), np.float32)
    image_index = np.full((rows, length), -1)
    scenes: list[Scene] = []
    for row, sample in enumerate(samples):
        count = len(sample.ids)
        ids[row, :count] = sample.ids
        targets[row, : count - 1] = np.where(sample.is_target[1:], sample.ids[1:], -100)
        weights[row, : count - 1] = target_weights(sample.is_target)[1:]
        image_index[row, :count] = np.where(sample.image_index >= 0, sample.image_index + len(scenes), -1)
        scenes += sample.scenes
    flat = (torch.from_numpy(part.reshape(-1)) for part in (ids, targets, weights, image_index))
    return TrainingBatch(rows, *flat, render_frames(scenes, plan), compute_cell_labels(scenes))


def iterate_batches(
    encoder: SampleEncoder,
    plan: ImageProcessorConfig,
    rng: random.Random,
    kind_weights: Mapping[str, float],
    batch_size: int,
) -> Iterator[TrainingBatch]:
    """Endless batches of training samples."""
    while True:
        samples = [
            encoder(make_sample(rng, "train", weight_by_kind=kind_weights))
            for _ in range(batch_size * BATCHES_PER_POOL)
        ]
        samples.sort(key=lambda sample: len(sample.ids))
        groups = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        rng.shuffle(groups)
        for group in groups:
            yield collate(group, plan, pad_id=0)
