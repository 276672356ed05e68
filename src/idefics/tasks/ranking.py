"""Ranks labels for pictures: `LabelRanker`, and `RankingMixin` with the `classify` method of `Idefics`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Unpack, overload

from idefics.engine.handle import RequestHandle
from idefics.engine.request import Deadline, Request
from idefics.errors import IdeficsError
from idefics.generation.call_inputs import prefetch_map
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import make_scoring_prompt
from idefics.messages import Detail, ImageDetail, Picture, PictureOrVideo, Ranking, Shot, Timings
from idefics.options import ClassifyKeywords, OnError
from idefics.tasks.classify import check_and_strip_labels, rank_labels, task_and_label_text
from idefics.tasks.picture_arguments import parse_image_argument
from idefics.tasks.task import compose_task_prompt
from idefics.validation import reject_unknown_arguments, validate_bool

if TYPE_CHECKING:
    from idefics.prompt import ScoringPrompt
    from idefics.tasks.picture_arguments import PictureInput, PictureInputs

NEUTRAL_IMAGE_SIZE = 64  # width and height of the grey picture that calibration compares with


@dataclass(frozen=True, slots=True)
class LabelRanker:
    """The arguments of one `classify` call, without its pictures: scores and ranks the labels for a picture.

    Attributes:
        model: scores the labels.
        labels: the labels, as `check_and_strip_labels` returns them.
        shots: few-shot examples.
        image_detail: how pictures that do not set their own detail are split into tiles.
        is_length_normalized: divide each label's score by its number of tokens.
        deadline: when the call fails with RequestTimeout; None: never.
        prior: for each label the log-probabilities of its tokens for the neutral picture, which calibrate the scores;
            None: no calibration.
    """

    model: LoadedModel
    labels: Sequence[str]
    shots: Sequence[Shot]
    image_detail: ImageDetail
    is_length_normalized: bool = False
    deadline: Deadline | None = None
    prior: list[list[float]] | None = None

    @classmethod
    def from_options(
        cls,
        model: LoadedModel,
        labels: Sequence[str],
        shots: Sequence[Shot],
        image_detail: ImageDetail,
        *,
        length_normalized: bool = False,
        calibrated: bool = False,
        deadline: Deadline | None = None,
    ) -> LabelRanker:
        """The ranker for the options of `RankingMixin.classify`, which are checked here."""
        is_normalized = validate_bool("length_normalized", length_normalized)
        ranker = cls(model, check_and_strip_labels(labels), shots, image_detail, is_normalized, deadline)
        if validate_bool("calibrated", calibrated):
            prior = ranker.submit(neutral_picture()).handle.result().continuation_logprobs
            return replace(ranker, prior=prior)
        return ranker

    def make_prompt(self, picture: PictureOrVideo) -> ScoringPrompt:
        """Makes the prompt for a picture, and the token ids of each label after it."""
        kind = self.model.processor.prompt_format.kind
        task, words = task_and_label_text(self.labels, kind)
        task_prompt = compose_task_prompt(task, kind, picture, words, self.shots)
        return make_scoring_prompt(
            self.model.processor_for_untrusted_text(self.image_detail),
            task_prompt.items,
            self.labels if kind == "chat" else [f" {label}" for label in self.labels],
        )

    def submit(self, picture: PictureOrVideo) -> PendingRanking:
        """Submits the labels to be scored for a picture; waits while the engine's queue is full."""
        start_time = time.perf_counter()
        prompt, continuations = self.make_prompt(picture)
        request = Request(prompt, continuations=continuations, deadline=self.deadline)
        return PendingRanking(self, self.model.engine.submit(request, wait=True), start_time)

    def rank(self, picture: PictureOrVideo) -> Ranking:
        """Ranks the labels for a picture; see `submit`."""
        return self.submit(picture).result()


@dataclass(frozen=True, slots=True)
class PendingRanking:
    """A ranking whose labels are being scored.

    Attributes:
        ranker: the arguments of the call.
        handle: the engine's handle of the request.
        start_time: when the prompt was begun, by `time.perf_counter`.
    """

    ranker: LabelRanker
    handle: RequestHandle
    start_time: float

    def result(self) -> Ranking:
        """Waits until the labels are scored and ranks them. Raises the error of a request that failed."""
        handle = self.handle.result()
        seconds = time.perf_counter() - self.start_time
        return Ranking(
            rank_labels(
                self.ranker.labels,
                handle.continuation_logprobs,
                self.ranker.prior,
                length_normalized=self.ranker.is_length_normalized,
            ),
            handle.usage,
            Timings(0.0, seconds, seconds),
            handle.request.prompt.notes,
        )


def neutral_picture() -> Picture:
    """Returns a plain mid-grey picture: the input without content that calibration compares with (arXiv 2102.09690)."""
    import PIL.Image

    return Picture(PIL.Image.new("RGB", (NEUTRAL_IMAGE_SIZE, NEUTRAL_IMAGE_SIZE), (127, 127, 127)))


class RankingMixin:
    """Ranks labels for one picture or several."""

    loaded_model: LoadedModel
    shots: tuple[Shot, ...]

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        image: PictureInput,
        labels: Sequence[str],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[ClassifyKeywords],
    ) -> Ranking:
        """`classify` for one picture: its ranking."""

    @overload
    def classify(
        self,
        image: PictureInputs,
        labels: Sequence[str],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[ClassifyKeywords],
    ) -> list[Ranking]:
        """`classify` for several pictures: a ranking for each."""

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        image: PictureInput,
        labels: Sequence[str],
        *,
        on_error: Literal["return"],
        **options: Unpack[ClassifyKeywords],
    ) -> Ranking | IdeficsError:
        """`classify` for one picture with `on_error="return"`: its ranking or its error."""

    @overload
    def classify(
        self,
        image: PictureInputs,
        labels: Sequence[str],
        *,
        on_error: Literal["return"],
        **options: Unpack[ClassifyKeywords],
    ) -> list[Ranking | IdeficsError]:
        """`classify` for several pictures with `on_error="return"`: a ranking or an error for each."""

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
        """Ranks labels for a picture by the log-probability of each label as the answer.

        The picture and the prompt are read once; all labels are scored in one pass after them.

        Args:
            image: one picture or video in any form that `Picture` takes, or a list of them.
            labels: 2 to 1000 labels; up to 20 are listed in the prompt.
            length_normalized: divide the log-probability of each label by its number of tokens.
            calibrated: subtract the log-probability of each label for a plain grey picture, so that labels which the
                model prefers for any picture gain nothing by that (arXiv 2102.09690).
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its ranking, and rank for the other pictures.
            detail: into how many tiles pictures are split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames per picture; None: as many as the checkpoint makes.
            timeout: seconds after which the call raises RequestTimeout; None: never.

        Returns:
            The labels with their probabilities, the most probable first; a list of rankings for a list of pictures.

        Raises:
            BadRequest: a picture, a label or a setting is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.classify("photo.jpg", ["cat", "dog"]).best
        """
        ranker = LabelRanker.from_options(
            self.loaded_model,
            labels,
            self.shots,
            ImageDetail(detail, max_tiles),
            length_normalized=length_normalized,
            calibrated=calibrated,
            deadline=Deadline.from_timeout(timeout),
        )
        pictures, error_policy = parse_image_argument(image, on_error)
        with closing(prefetch_map(ranker.rank, pictures, ranker.deadline)) as results:
            rankings = [error_policy.return_or_raise(index, result) for index, result in enumerate(results)]
        return rankings if error_policy.num_inputs else rankings[0]

    def label_scoring_prompt(
        self, labels: Sequence[str], picture: PictureOrVideo, image_detail: ImageDetail
    ) -> ScoringPrompt:
        """Makes the prompt of `classify` for one picture, and the token ids of each label after it.

        Args:
            labels: the labels, as `check_and_strip_labels` returns them.
            picture: the picture.
            image_detail: how pictures that do not set their own detail are split into tiles.
        """
        return LabelRanker(self.loaded_model, labels, self.shots, image_detail).make_prompt(picture)
