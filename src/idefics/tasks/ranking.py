"""Ranks labels for pictures: the model scores each label as the answer of the `classify` task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics.engine.handle import RequestHandle
from idefics.engine.request import Deadline, Request
from idefics.errors import IdeficsError
from idefics.generation.loaded_model import LoadedModel
from idefics.generation.prompts import make_scoring_prompt
from idefics.messages import ImageDetail, Picture, PictureOrVideo, Ranking, Shot, Timings
from idefics.tasks.classify import rank_labels
from idefics.tasks.picture_arguments import picture_or_raise
from idefics.tasks.task import Task, compose_task_prompt

if TYPE_CHECKING:
    from idefics.prompt import ScoringPrompt

NEUTRAL_IMAGE_SIZE = 64  # width and height of the grey picture that calibration compares with


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRanker:
    """One `classify` call, without its pictures.

    Attributes:
        model: scores the labels.
        task: the prompt that goes with the number of labels; see `task_for_labels`.
        words: the text that lists the labels in the prompt.
        labels: the labels, as `check_labels` returns them.
        shots: few-shot examples.
        image_detail: how pictures that do not set their own detail are split into tiles.
        is_length_normalized: divide each label's score by its number of tokens.
        deadline: when the call fails with RequestTimeout; None: never.
    """

    model: LoadedModel
    task: Task
    words: str
    labels: Sequence[str]
    shots: Sequence[Shot] = ()
    image_detail: ImageDetail
    is_length_normalized: bool = False
    deadline: Deadline | None = None

    def make_prompt(self, picture: PictureOrVideo) -> ScoringPrompt:
        """Makes the prompt for a picture, and the token ids of each label after it."""
        kind = self.model.processor.prompt_format.kind
        task_prompt = compose_task_prompt(self.task, kind, picture, self.words, self.shots)
        return make_scoring_prompt(
            self.model.task_processor(self.image_detail),
            task_prompt.items,
            self.labels if kind == "chat" else [f" {label}" for label in self.labels],
        )

    def score(self, picture: PictureOrVideo) -> RequestHandle:
        """Returns the finished request that scored the labels for a picture."""
        prompt, continuations = self.make_prompt(picture)
        request = Request(prompt, continuations=continuations, deadline=self.deadline)
        return self.model.engine.submit(request, wait=True).result()

    def rank(self, picture: PictureOrVideo | IdeficsError, prior: list[list[float]] | None) -> Ranking:
        """Ranks the labels for a picture.

        Args:
            picture: the picture; an error in its place is raised.
            prior: for each label the log-probabilities of its tokens for the neutral picture, which calibrate the
                scores; None: no calibration.
        """
        start_time = time.perf_counter()
        handle = self.score(picture_or_raise(picture))
        seconds = time.perf_counter() - start_time
        return Ranking(
            rank_labels(
                self.labels,
                handle.continuation_logprobs,
                prior,
                length_normalized=self.is_length_normalized,
            ),
            handle.usage,
            Timings(0.0, seconds, seconds),
            handle.request.prompt.notes,
        )


def neutral_picture() -> Picture:
    """Returns a plain mid-grey picture, which stands for no content in calibration (arXiv 2102.09690)."""
    import PIL.Image

    return Picture(PIL.Image.new("RGB", (NEUTRAL_IMAGE_SIZE, NEUTRAL_IMAGE_SIZE), (127, 127, 127)))
