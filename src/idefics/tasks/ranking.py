"""`classify` as a method: labels ranked by how likely each is as the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal, overload

from idefics.engine.handle import RequestHandle
from idefics.engine.request import Deadline, Request
from idefics.errors import IdeficsError
from idefics.generation.prefetch import prefetch_map
from idefics.messages import Detail, ImageDetail, Picture, PictureOrVideo, Ranking, Timings
from idefics.options import OnError
from idefics.tasks import classify
from idefics.tasks.task import Task, compose_task_prompt
from idefics.tasks.task_pipeline import TaskPipeline, parse_pictures, picture_or_raise
from idefics.validation import reject_unknown_arguments, validate_bool

if TYPE_CHECKING:
    from idefics.prompt import ScoringPrompt
    from idefics.tasks.task_pipeline import PictureInput, PictureInputs

NEUTRAL_IMAGE_SIZE = 64  # of the plain grey picture that stands for "no picture in particular"


class RankingPipeline(TaskPipeline):
    """A pipeline that ranks labels."""

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        on_error: Literal["raise"] = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> Ranking: ...
    @overload
    def classify(
        self,
        image: PictureInputs,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        on_error: Literal["raise"] = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> list[Ranking]: ...
    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        on_error: Literal["return"],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> Ranking | IdeficsError: ...
    @overload
    def classify(
        self,
        image: PictureInputs,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        on_error: Literal["return"],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> list[Ranking | IdeficsError]: ...
    @reject_unknown_arguments
    def classify(
        self,
        image: PictureInput | PictureInputs,
        labels: Sequence[str],
        *,
        length_normalized: bool = False,
        calibrated: bool = False,
        on_error: OnError = "raise",
        detail: Detail = "high",
        max_tiles: int | None = None,
        timeout: float | None = None,
    ) -> Ranking | IdeficsError | list[Ranking] | list[Ranking | IdeficsError]:
        """Ranks labels by the summed log-probability of each one's tokens as the answer.

        The picture and the prompt are read once, all labels in one pass after them.

        Args:
            image: a picture or a list of pictures, as in `ask`.
            labels: 2 to 1000; up to 20 are listed in the prompt.
            length_normalized: divide each sum by the label's number of tokens.
            calibrated: subtract what the model says of a plain grey picture, so that labels it likes anyway
                gain nothing by it (arXiv 2102.09690).
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its ranking, and rank for the rest.
            detail, max_tiles: how closely pictures are looked at; see `ImageDetail`.
            timeout: seconds; where the call takes longer it raises RequestTimeout.
        """
        deadline = Deadline.from_timeout(timeout)
        image_detail = ImageDetail(detail, max_tiles)
        is_length_normalized = validate_bool("length_normalized", length_normalized)
        checked_labels = classify.check_labels(labels)
        task, words = classify.task_for_labels(checked_labels, self.processor.prompt_format.kind)
        prior = (
            self._score_labels(
                task, words, checked_labels, neutral_picture(), image_detail, deadline
            ).continuation_logprobs
            if validate_bool("calibrated", calibrated)
            else None
        )

        def rank(picture: PictureOrVideo | IdeficsError) -> Ranking:
            return self._rank_picture(
                task,
                words,
                checked_labels,
                picture_or_raise(picture),
                image_detail,
                prior,
                is_length_normalized,
                deadline,
            )

        pictures, error_policy = parse_pictures(image, on_error)
        with closing(prefetch_map(rank, pictures, deadline)) as results:
            rankings = [error_policy.return_or_raise(index, result) for index, result in enumerate(results)]
        return rankings if error_policy.num_inputs else rankings[0]

    def _rank_picture(
        self,
        task: Task,
        words: str,
        labels: list[str],
        picture: PictureOrVideo,
        image_detail: ImageDetail,
        prior: list[list[float]] | None,
        length_normalized: bool,
        deadline: Deadline | None,
    ) -> Ranking:
        start_time = time.perf_counter()
        handle = self._score_labels(task, words, labels, picture, image_detail, deadline)
        seconds = time.perf_counter() - start_time
        return Ranking(
            classify.rank_labels(
                labels, handle.continuation_logprobs, prior, length_normalized=length_normalized
            ),
            handle.usage,
            Timings(0.0, seconds, seconds),
            handle.request.prompt.notes,
        )

    def _score_labels(
        self,
        task: Task,
        words: str,
        labels: list[str],
        picture: PictureOrVideo,
        image_detail: ImageDetail,
        deadline: Deadline | None,
    ) -> RequestHandle:
        prompt, continuations = self.label_scoring_prompt(task, words, labels, picture, image_detail)
        return self.engine.submit(
            Request(prompt, continuations=continuations, deadline=deadline), wait=True
        ).result()

    def label_scoring_prompt(
        self,
        task: Task,
        words: str,
        labels: Sequence[str],
        picture: PictureOrVideo,
        image_detail: ImageDetail,
    ) -> ScoringPrompt:
        """What `classify` asks of the engine: the prompt for one picture, and the ids of each label after it.

        Args:
            task, words: as `tasks.classify.worded` gives them.
            labels: as `tasks.classify.checked` gives them.
        """
        task_prompt = compose_task_prompt(task, self.processor.prompt_format.kind, picture, words, self.shots)
        continuation_texts = (
            labels if self.processor.prompt_format.kind == "chat" else [f" {label}" for label in labels]
        )
        return self._with_plain_text().endings(
            task_prompt.items,
            continuation_texts,
            detail=image_detail.detail,
            max_tiles=image_detail.max_tiles,
        )


def neutral_picture() -> Picture:
    """A plain mid-grey picture: as good as no picture at all."""
    import PIL.Image

    return Picture(PIL.Image.new("RGB", (NEUTRAL_IMAGE_SIZE, NEUTRAL_IMAGE_SIZE), (127, 127, 127)))
