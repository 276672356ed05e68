"""The evidence of an explanation: log-probabilities of tokens, with and without the pictures, and heat maps of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from idefics.engine.engine import Engine
from idefics.engine.handle import RequestHandle
from idefics.engine.request import Deadline, Request
from idefics.explain.covering import gray_picture
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
