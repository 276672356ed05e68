"""Occlusion: covers parts of the pictures, and measures what the log-probability of each token loses.

All tokens of an answer, or of all labels, are scored in one pass for each covered part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from idefics.explain.covering import CoverablePicture
from idefics.explain.evidence import EvidenceMethod, Steps, TokenEvidence, token_scores
from idefics.explain.heat import HeatMaps
from idefics.explain.parts import CellGrid, Part, count_parts, part_sizes, plan_level, select_parts
from idefics.explain.words import TokenGroup
from idefics.prompt import PreprocessedImage

PARTS_AT_ONCE = 16  # parts whose pictures are held in memory together; a partial result follows each


@dataclass(frozen=True)
class Occlusion(EvidenceMethod):
    """One explanation by occlusion.

    Attributes:
        groups: the tokens of each word or label.
        grids: the grid of each explained picture.
        grid: cells along a picture's longer edge.
    """

    groups: Sequence[TokenGroup]
    grids: Sequence[CellGrid]
    grid: int

    @property
    def num_passes(self) -> int:
        """How many passes of the model the explanation takes: one a part, one each with and without the pictures."""
        return 2 + count_parts(self.grids, self.grid)

    def steps(self) -> Steps:
        """Yields requests to score, for which it is sent their finished handles, and in between what is known so far.

        So the caller decides how to wait. The last that it yields is the result.
        """
        explained, full, gray = yield from self.pictures_and_scores()
        coverable = [CoverablePicture(image) for image in explained]
        heat = HeatMaps(self.grids, part_sizes(self.grid), len(full))
        num_done = 2
        for level in range(len(heat.sizes)):
            for batch in _batches(self._select(heat, level)):
                handles = yield [self.request(self._cover(coverable, part)) for part in batch]
                for part, handle in zip(batch, handles, strict=True):
                    heat.add(level, part, full - token_scores(handle))
                num_done += len(batch)
                maps = [heat.maps(picture) for picture in range(len(self.grids))]
                yield TokenEvidence(full, gray, maps, num_done, self.num_passes)

    def _select(self, heat: HeatMaps, level: int) -> list[Part]:
        """The parts of a size that are covered: those where the words lost most so far."""
        parts, limit = plan_level(self.grids, self.grid, level)
        if limit == len(parts):
            return parts
        relevance = []
        for picture in range(len(self.grids)):
            maps = heat.maps(picture)
            relevance.append(sum(np.abs(group.sum(maps)) for group in self.groups))
        return select_parts(parts, relevance, limit)  # type: ignore[arg-type]  # there is a group: no 0

    def _cover(self, coverable: Sequence[CoverablePicture], part: Part) -> list[PreprocessedImage]:
        """The explained pictures with one part covered."""
        cells = np.zeros((self.grids[part.picture].rows, self.grids[part.picture].columns), np.bool_)
        cells[part.cells] = True
        return [
            one.cover(cells) if index == part.picture else one.image for index, one in enumerate(coverable)
        ]


def _batches(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The parts, a few at a time."""
    for start in range(0, len(parts), PARTS_AT_ONCE):
        yield parts[start : start + PARTS_AT_ONCE]
