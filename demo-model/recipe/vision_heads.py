"""Classification heads that supervise the vision tower during training; no checkpoint contains them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from picturebook.things import COLOR_RGB, GROUND_RGB

from .batches import NUM_KINDS, CellLabels

MAX_VISION_THINGS = 8  # things in a picture of the first stage: three times as many labels as in the second


class CellHeads(nn.Module):
    """Classifiers over the nine cell vectors of a picture, for training only: kind, colour, size, position, counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, NUM_KINDS)
        self.colors = nn.Linear(width, len(COLOR_RGB))
        self.sizes = nn.Linear(width, 3)
        self.positions = nn.Linear(width, 9)
        self.num_same = nn.Linear(width, 1 + MAX_VISION_THINGS)
        self.num_same_kind = nn.Linear(width, 1 + MAX_VISION_THINGS)
        self.mention_order = nn.Linear(width, 1 + MAX_VISION_THINGS)

    def compute_loss(self, cells: Tensor, labels: CellLabels) -> tuple[Tensor, float]:
        """(P, 9, D) -> the sum of the seven losses, and the share of filled cells whose kind is right."""
        kind_logits = self.kinds(cells)
        cell_indices = torch.arange(9).expand(len(cells), 9)
        colors = cross_entropy(self.colors(cells).flatten(0, 1), labels.colors.flatten(), reduction="sum")
        losses = (
            cross_entropy(kind_logits.flatten(0, 1), labels.kinds.flatten())
            + colors / (labels.colors >= 0).sum().clamp(min=1)
            + cross_entropy(self.sizes(cells).flatten(0, 1), labels.sizes.flatten())
            + cross_entropy(self.positions(cells).flatten(0, 1), cell_indices.flatten())
            + cross_entropy(self.num_same(cells).flatten(0, 1), labels.num_same.flatten())
            + cross_entropy(self.num_same_kind(cells).flatten(0, 1), labels.num_same_kind.flatten())
            + cross_entropy(self.mention_order(cells).flatten(0, 1), labels.mention_order.flatten())
        )
        has_thing = labels.kinds > 0
        return losses, (kind_logits.argmax(-1) == labels.kinds)[has_thing].float().mean().item()


class VisionHeads(nn.Module):
    """Classifiers over the patches of the vision tower, for training only: the cells, and the ground."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = CellHeads(4 * width)
        self.grounds = nn.Linear(width, 2 * len(GROUND_RGB))

    def compute_loss(self, patches: Tensor, labels: CellLabels) -> tuple[Tensor, float]:
        """(P, S, D) patches, with or without a leading class vector -> the loss, and the share as in `CellHeads`."""
        patches = patches[:, -36:]
        cell_features = (
            patches.unflatten(1, (3, 2, 3, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
        )  # (P, 9, 4D)
        loss, kind_accuracy = self.cells.compute_loss(cell_features, labels)
        return loss + cross_entropy(self.grounds(patches.mean(1)), labels.ground_and_time), kind_accuracy
