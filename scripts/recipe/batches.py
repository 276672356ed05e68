"""Batches of samples of about equal length, as tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idefics.config import ImagePlan
from picturebook import CATALOG, CELL_CLASSES, Scene, draw, make, patch_labels
from picturebook.things import COLORS, FIRST_SHAPE, GROUNDS, SHAPES, shape_and_color

from .encoding import Encoded, Encoder

KIND_NAMES = ["none", *(CATALOG[what].name for what in range(1, FIRST_SHAPE)), *SHAPES]
NUMBER_OF_KINDS = len(KIND_NAMES)
_PAIRS = [shape_and_color(what) for what in range(FIRST_SHAPE, CELL_CLASSES)]
KINDS = torch.tensor([*range(FIRST_SHAPE), *(FIRST_SHAPE + list(SHAPES).index(shape) for shape, _ in _PAIRS)])
COLORS_OF = torch.tensor([-100] * FIRST_SHAPE + [list(COLORS).index(color) for _, color in _PAIRS])
POOL = 4  # batches are cut from so many batches' samples, sorted by length


@dataclass(frozen=True)
class Labels:
    """What the P pictures show.

    Attributes:
        kinds: (P, 9) what stands in each cell: 0 nothing, then things, then shapes of whatever colour.
        colors: (P, 9) the colour of a shape, -100 elsewhere. Apart from its shape, so that new pairs stay open.
        sizes: (P, 9) 0 nothing, 1 small, 2 large.
        alike: (P, 9) how many cells show the same, this one included; 0 where there is nothing.
        kin: (P, 9) how many cells show the same kind: as `alike`, but a shape of whatever colour counts.
        turns: (P, 9) when an inventory comes to what the cell shows: 1 for the first thing in reading order and all
            that are like it, 2 for the next; 0 where there is nothing.
        grounds: (P,) ground and time of day.
    """

    kinds: Tensor
    colors: Tensor
    sizes: Tensor
    alike: Tensor
    kin: Tensor
    turns: Tensor
    grounds: Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens padded on the right, flattened, and the P pictures of all rows.

    Attributes:
        rows: B.
        ids: (B*T,).
        targets: (B*T,) the next id where it is to be learned, else -100.
        weights: (B*T,) how much each target counts: less in a long answer than in a short one.
        sees: (B*T,) index of the token's picture among the P, or -1.
        frames: (P, 3, side, side).
        labels: of the P pictures.
    """

    rows: int
    ids: Tensor
    targets: Tensor
    weights: Tensor
    sees: Tensor
    frames: Tensor
    labels: Labels


def frames_of(scenes: list[Scene], plan: ImagePlan) -> Tensor:
    """Scenes drawn at the tower's size and normalised."""
    pixels = np.stack([draw(scene) for scene in scenes]).astype(np.float32) * plan.scale
    pixels = (pixels - np.array(plan.mean, np.float32)) / np.array(plan.std, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def labels_of(scenes: list[Scene]) -> Labels:
    """What scenes show, cell by cell."""
    cells = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))
    kinds, colors, sizes = KINDS[cells], COLORS_OF[cells], torch.zeros_like(cells)
    for row, scene in enumerate(scenes):
        for item in scene.items:
            sizes[row, item.cell] = 1 + (item.size == "large")
    names = list(GROUNDS)
    grounds = torch.tensor([names.index(scene.ground) * 2 + scene.night for scene in scenes])
    filled, same = cells > 0, cells[:, :, None] == cells[:, None]  # (P, 9), (P, 9, 9)
    alike, kin = same.sum(-1) * filled, (kinds[:, :, None] == kinds[:, None]).sum(-1) * filled
    first = same.int().argmax(-1)  # (P, 9) the first cell that shows the same
    new = (first == torch.arange(first.shape[1])) & filled
    turns = new.cumsum(-1).gather(1, first) * filled
    return Labels(kinds, colors, sizes, alike, kin, turns, grounds)


def answer_weights(learned: np.ndarray) -> np.ndarray:
    """A weight for each token of a row: its answer's length to the power of -3/4, 0 outside answers.

    With equal weights the one token of "Yes." would drown among forty of a caption.
    """
    edges = np.flatnonzero(np.diff(learned, prepend=False, append=False))
    weights = np.zeros(len(learned), np.float32)
    for start, end in edges.reshape(-1, 2):
        weights[start:end] = (end - start) ** -0.75
    return weights


def collate(samples: list[Encoded], plan: ImagePlan, pad: int) -> Batch:
    """Pads on the right, where causality keeps it out of sight, and numbers the pictures through."""
    rows, length = len(samples), max(len(sample.ids) for sample in samples)
    ids = np.full((rows, length), pad)
    targets = np.full((rows, length), -100)
    weights = np.zeros((rows, length), np.float32)
    sees = np.full((rows, length), -1)
    scenes: list[Scene] = []
    for row, sample in enumerate(samples):
        count = len(sample.ids)
        ids[row, :count] = sample.ids
        targets[row, : count - 1] = np.where(sample.learned[1:], sample.ids[1:], -100)
        weights[row, : count - 1] = answer_weights(sample.learned)[1:]
        sees[row, :count] = np.where(sample.sees >= 0, sample.sees + len(scenes), -1)
        scenes += sample.scenes
    flat = (torch.from_numpy(part.reshape(-1)) for part in (ids, targets, weights, sees))
    return Batch(rows, *flat, frames_of(scenes, plan), labels_of(scenes))


def batches(
    encoder: Encoder, plan: ImagePlan, rng: random.Random, mix: Mapping[str, float], rows: int
) -> Iterator[Batch]:
    """Endless batches of training samples."""
    while True:
        samples = [encoder(make(rng, "train", mix=mix)) for _ in range(rows * POOL)]
        samples.sort(key=lambda sample: len(sample.ids))
        cut = [samples[start : start + rows] for start in range(0, len(samples), rows)]
        rng.shuffle(cut)
        for part in cut:
            yield collate(part, plan, pad=0)
