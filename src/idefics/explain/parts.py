"""Which parts of pictures are covered: three sizes that overlap by half, the smaller ones only where it matters.

The smaller parts also reach over the edges of the picture by half: otherwise cells at an edge would be covered only
together with those further in, and would seem to matter as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIZES = (1 / 2, 1 / 4, 1 / 8)  # of parts, as a share of the picture's longer edge
MAX_PARTS = (None, 24, 32)  # of each size in all pictures together; None: all


@dataclass(frozen=True)
class CellGrid:
    """The cells of one picture's map.

    Attributes:
        rows, columns: how many cells the picture is high and wide; the longer edge has `grid` of them.
    """

    rows: int
    columns: int

    @classmethod
    def for_size(cls, width: int, height: int, grid: int) -> CellGrid:
        """The grid of a picture of `width` x `height` pixels whose cells are as square as can be."""
        longer = max(width, height)
        return cls(max(1, round(grid * height / longer)), max(1, round(grid * width / longer)))


@dataclass(frozen=True)
class Part:
    """A rectangle of cells of one picture.

    Attributes:
        picture: the index of the picture.
        top, left: in cells; negative where the part reaches over the edge.
        size: height and width in cells.
    """

    picture: int
    top: int
    left: int
    size: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """Selects the part's cells of an array (rows, columns)."""
        return (
            slice(max(0, self.top), self.top + self.size),
            slice(max(0, self.left), self.left + self.size),
        )

    def weights(self, cell_grid: CellGrid) -> NDArray[np.float64]:
        """The weight of the part's loss for each of its cells: 1 in its middle, falling to its edges."""
        rows, columns = (np.arange(number) for number in (cell_grid.rows, cell_grid.columns))
        down, across = (
            1 - np.abs((one - start + 0.5) / (self.size / 2) - 1)
            for one, start in ((rows, self.top), (columns, self.left))
        )
        weights: NDArray[np.float64] = np.outer(down, across)[self.cells]
        return weights


def part_sizes(grid: int) -> list[int]:
    """The edges of parts in cells, the largest first, without repetition."""
    return list(dict.fromkeys(max(1, round(grid * size)) for size in SIZES))


def parts_of_size(picture: int, cell_grid: CellGrid, size: int, *, overhangs: bool) -> Iterator[Part]:
    """Yields the parts of one size of a picture, row by row, each half a part further.

    Args:
        overhangs: whether parts reach over the edges by half.
    """
    overhang = size // 2 if overhangs else 0
    for top, left in product(
        _part_starts(cell_grid.rows, size, overhang), _part_starts(cell_grid.columns, size, overhang)
    ):
        yield Part(picture, top, left, size)


def _part_starts(num_cells: int, size: int, overhang: int) -> list[int]:
    """The starts of parts along one axis, at most half a part apart; the first and last are `overhang` outside."""
    overhang = min(overhang, num_cells // 2)  # of a picture that is narrower than the part
    first, last = -overhang, max(0, num_cells - size) + overhang
    count = -(-(last - first) // max(1, size // 2))
    return [first + round((last - first) * index / count) for index in range(count + 1)] if count else [0]


def plan_level(grids: Sequence[CellGrid], grid: int, level: int) -> tuple[list[Part], int]:
    """All parts of one size, and how many of them are covered at most.

    Args:
        grids: the grid of each picture.
        grid: cells along the longer edge.
        level: the index of the size.
    """
    size = part_sizes(grid)[level]
    parts = [
        part
        for picture, one in enumerate(grids)
        for part in parts_of_size(picture, one, size, overhangs=level > 0)
    ]
    limit = MAX_PARTS[level]
    return parts, len(parts) if limit is None else min(limit, len(parts))


def count_parts(grids: Sequence[CellGrid], grid: int) -> int:
    """How many parts are covered in all."""
    return sum(plan_level(grids, grid, level)[1] for level in range(len(part_sizes(grid))))


def select_parts(parts: Sequence[Part], relevance: Sequence[NDArray[np.float64]], limit: int) -> list[Part]:
    """The parts with the most relevance, in their order; of equal ones the first.

    Args:
        relevance: (rows, columns) for each picture.
    """
    totals = [-float(relevance[part.picture][part.cells].mean()) for part in parts]
    chosen = sorted(np.argsort(totals, kind="stable")[:limit])
    return [parts[index] for index in chosen]
