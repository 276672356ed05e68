"""`HeatMaps`: collects what the log-probabilities lose when parts are covered, and makes maps of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idefics.explain.parts import CellGrid, Part

Losses = NDArray[np.float64]  # (T,) nats that the log-probability of each of T tokens loses


class HeatMaps:
    """The maps of T tokens over the cells of some pictures.

    The heat of a cell is what a token's log-probability loses, in nats, when a part that holds the cell is covered: the
    mean over the parts of one size, and then over the sizes. Parts overlap, so that each cell is in several; those in
    whose middle it lies weigh more. Where parts of a size were left out since little was lost there, the loss of the
    next larger size is shared out by area.

    Args:
        grids: the grid of each picture.
        sizes: the edges of parts in cells, the largest first.
        num_tokens: T.
    """

    def __init__(self, grids: Sequence[CellGrid], sizes: Sequence[int], num_tokens: int) -> None:
        self.grids, self.sizes = grids, sizes
        self._sums = [[np.zeros((num_tokens, one.rows, one.columns)) for one in grids] for _ in sizes]
        self._weights = [[np.zeros((one.rows, one.columns)) for one in grids] for _ in sizes]

    def add(self, level: int, part: Part, losses: Losses) -> None:
        """Adds what was lost when a part of the size number `level` was covered."""
        rows, columns = part.cells
        weights = part.weights(self.grids[part.picture])
        self._sums[level][part.picture][:, rows, columns] += losses[:, None, None] * weights
        self._weights[level][part.picture][rows, columns] += weights

    def maps(self, picture: int) -> NDArray[np.float64]:
        """(T, rows, columns): the heat of a picture's cells, from all sizes of which parts were added."""
        levels: list[NDArray[np.float64]] = []
        for level, (sums, weights) in enumerate(zip(self._sums, self._weights, strict=True)):
            if level and not any(one.any() for one in weights):
                break
            weight = weights[picture]
            mean = sums[picture] / np.where(weight > 0, weight, 1)
            if levels:
                share = (self.sizes[level] / self.sizes[level - 1]) ** 2
                mean = np.where(weight > 0, mean, levels[-1] * share)
            levels.append(mean)
        return np.mean(levels, axis=0)  # type: ignore[no-any-return]
