"""Occlusion: covers parts of the pictures, and measures what the log-probability of each token loses."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from idefics.engine.engine import Engine
from idefics.engine.handle import RequestHandle
from idefics.engine.request import Deadline, Request
from idefics.explain.covering import CoverablePicture, gray_picture
from idefics.explain.parts import CellGrid, Part, count_parts, part_sizes, plan_level, select_parts
from idefics.explain.words import TokenGroup
from idefics.generation.loading import LoadedModel
from idefics.prompt import PreprocessedImage, ScoringPrompt

Scores = NDArray[np.float64]  # (T,) log-probabilities in nats


@dataclass(frozen=True)
class TokenEvidence:
    """What is known about T tokens so far.

    Attributes:
        log_probabilities: (T,) with the pictures as they are.
        without_picture: (T,) with plain grey pictures of the same tiles.
        maps: (T, rows, columns) for each picture: the heat of each cell.
        num_passes: how many passes of the model were made.
        max_passes: how many will have been made at the end.
    """

    log_probabilities: Scores
    without_picture: Scores
    maps: Sequence[NDArray[np.float64]]
    num_passes: int
    max_passes: int


Steps = Generator[list[Request] | TokenEvidence, list[RequestHandle]]


@dataclass(frozen=True)
class EvidenceMethod:
    """What the methods of an explanation have in common.

    Attributes:
        model: scores the tokens.
        prompt: the prompt and the continuations whose T tokens are explained.
        num_pictures: how many of the last pictures of the prompt are explained.
        deadline: when the explanation fails with RequestTimeout; None: never.
    """

    model: LoadedModel
    prompt: ScoringPrompt
    num_pictures: int
    deadline: Deadline | None

    def pictures_and_scores(
        self,
    ) -> Generator[list[Request], list[RequestHandle], tuple[Sequence[PreprocessedImage], Scores, Scores]]:
        """Steps that return the explained pictures, and the scores with them and with plain grey ones."""
        explained = self.prompt.prompt.pictures[-self.num_pictures :]
        # The pictures as they are come first and alone: later pictures use the features of their frames.
        full = token_scores((yield [self.request(explained)])[0])
        image_config = self.model.processor.image_config
        gray_pictures = [gray_picture(image, image_config) for image in explained]
        gray = token_scores((yield [self.request(gray_pictures)])[0])
        return explained, full, gray

    def request(self, images: Sequence[PreprocessedImage]) -> Request:
        """The request that scores the tokens with other pictures in the place of the explained ones."""
        prompt, continuations = self.prompt
        return Request(prompt.with_last_pictures(images), continuations=continuations, deadline=self.deadline)


def run_steps(engine: Engine, steps: Steps) -> Iterator[TokenEvidence]:
    """Yields what `steps` finds out, whose requests it has scored; the last is the result.

    Raises:
        IdeficsError: as `Engine.submit`, or RequestTimeout at the deadline.
    """
    step: list[Request] | TokenEvidence | None = next(steps)
    while step is not None:
        if isinstance(step, TokenEvidence):
            yield step
            step = next(steps, None)
        else:
            step = steps.send(_score(engine, step))


def _score(engine: Engine, requests: Sequence[Request]) -> list[RequestHandle]:
    """Waits for requests; cancels all if one fails or the caller leaves."""
    handles: list[RequestHandle] = []
    try:
        handles.extend(engine.submit(request, wait=True) for request in requests)
        return [handle.result() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()


def token_scores(handle: RequestHandle) -> Scores:
    """(T,) log-probabilities of the continuations' tokens, one continuation after another."""
    return np.array([*chain.from_iterable(handle.continuation_logprobs)])


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
