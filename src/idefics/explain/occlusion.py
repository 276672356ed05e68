"""Occlusion: covers parts of the pictures, and measures what the log-probability of each token loses.

All tokens of an answer, or of all labels, are scored in one pass for each covered part.
"""

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
from idefics.explain.heat import HeatMaps
from idefics.explain.parts import CellGrid, Part, count_parts, part_sizes, plan_level, select_parts
from idefics.explain.words import TokenGroup
from idefics.generation.loading import LoadedModel
from idefics.prompt import PreprocessedImage, ScoringPrompt

PARTS_AT_ONCE = 16  # parts whose pictures are held in memory together; a partial result follows each

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


@dataclass(frozen=True)
class Occlusion:
    """One explanation by occlusion.

    Attributes:
        model: scores the tokens.
        prompt: the prompt and the continuations whose T tokens are explained.
        groups: the tokens of each word or label.
        grids: the grid of each explained picture; these are the last pictures of the prompt.
        grid: cells along a picture's longer edge.
        deadline: when the explanation fails with RequestTimeout; None: never.
    """

    model: LoadedModel
    prompt: ScoringPrompt
    groups: Sequence[TokenGroup]
    grids: Sequence[CellGrid]
    grid: int
    deadline: Deadline | None = None

    @property
    def num_passes(self) -> int:
        """How many passes of the model the explanation takes: one a part, one each with and without the pictures."""
        return 2 + count_parts(self.grids, self.grid)

    def steps(self) -> Steps:
        """Yields requests to score, for which it is sent their finished handles, and in between what is known so far.

        So the caller decides how to wait. The last that it yields is the result.
        """
        pictures = self.prompt.prompt.pictures
        image_config = self.model.processor.image_config
        explained = pictures[len(pictures) - len(self.grids) :]
        # The pictures as they are come first and alone: later pictures use the features of their frames.
        full = token_scores((yield [self._request(explained)])[0])
        gray_pictures = [gray_picture(image, image_config) for image in explained]
        gray = token_scores((yield [self._request(gray_pictures)])[0])
        coverable = [CoverablePicture(image) for image in explained]
        heat = HeatMaps(self.grids, part_sizes(self.grid), len(full))
        num_done = 2
        for level in range(len(heat.sizes)):
            for batch in _batches(self._select(heat, level)):
                handles = yield [self._request(self._cover(coverable, part)) for part in batch]
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

    def _request(self, images: Sequence[PreprocessedImage]) -> Request:
        """The request that scores the tokens with other pictures in the place of the explained ones."""
        prompt, continuations = self.prompt
        return Request(prompt.with_last_pictures(images), continuations=continuations, deadline=self.deadline)


Steps = Generator[list[Request] | TokenEvidence, list[RequestHandle]]


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


def _batches(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The parts, a few at a time."""
    for start in range(0, len(parts), PARTS_AT_ONCE):
        yield parts[start : start + PARTS_AT_ONCE]
