"""`classify` as a method: labels ranked by how likely each is as the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal, overload

from idefics.calls import checked_flag, public
from idefics.engine.handle import Handle
from idefics.engine.request import Deadline, Request
from idefics.errors import IdeficsError
from idefics.messages import Detail, ImageDetail, Picture, Ranking, Timings, Visual
from idefics.options import OnError
from idefics.pipeline.ahead import ahead
from idefics.tasks import classify
from idefics.tasks.pictured import TaskPipeline, given_pictures, there
from idefics.tasks.record import Task, compose

if TYPE_CHECKING:
    from idefics.processing.processor import Endings
    from idefics.tasks.pictured import Many, One

NEUTRAL_SIDE = 64  # of the plain grey picture that stands for "no picture in particular"


class RankingPipeline(TaskPipeline):
    """A pipeline that ranks labels."""

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
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
        image: Many,
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
        image: One,
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
        image: Many,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        on_error: Literal["return"],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> list[Ranking | IdeficsError]: ...
    @public
    def classify(
        self,
        image: One | Many,
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
        deadline = Deadline.of(timeout)
        look = ImageDetail(detail, max_tiles)
        by_length = checked_flag("length_normalized", length_normalized)
        wanted = classify.checked(labels)
        task, words = classify.worded(wanted, self.processor.style.kind)
        prior = (
            self._label_scores(task, words, wanted, neutral(), look, deadline).scores
            if checked_flag("calibrated", calibrated)
            else None
        )

        def rank(picture: Visual | IdeficsError) -> Ranking:
            return self._ranking(task, words, wanted, there(picture), look, prior, by_length, deadline)

        pictures, failures = given_pictures(image, on_error)
        with closing(ahead(rank, pictures, deadline)) as results:
            rankings = [failures.resolved(index, result) for index, result in enumerate(results)]
        return rankings if failures.total else rankings[0]

    def _ranking(
        self,
        task: Task,
        words: str,
        labels: list[str],
        picture: Visual,
        look: ImageDetail,
        prior: list[list[float]] | None,
        length_normalized: bool,
        deadline: Deadline | None,
    ) -> Ranking:
        began = time.perf_counter()
        handle = self._label_scores(task, words, labels, picture, look, deadline)
        seconds = time.perf_counter() - began
        return Ranking(
            classify.ranked(labels, handle.scores, prior, length_normalized=length_normalized),
            handle.usage,
            Timings(0.0, seconds, seconds),
            handle.request.prompt.notes,
        )

    def _label_scores(
        self,
        task: Task,
        words: str,
        labels: list[str],
        picture: Visual,
        look: ImageDetail,
        deadline: Deadline | None,
    ) -> Handle:
        prompt, rests = self.label_endings(task, words, labels, picture, look)
        return self.engine.submit(Request(prompt, endings=rests, deadline=deadline), wait=True).result()

    def label_endings(
        self, task: Task, words: str, labels: Sequence[str], picture: Visual, look: ImageDetail
    ) -> Endings:
        """What `classify` asks of the engine: the prompt for one picture, and the ids of each label after it.

        Args:
            task, words: as `tasks.classify.worded` gives them.
            labels: as `tasks.classify.checked` gives them.
        """
        composed = compose(task, self.processor.style.kind, picture, words, self.shots)
        spaced = labels if self.processor.style.kind == "chat" else [f" {label}" for label in labels]
        return self._plain().endings(composed.items, spaced, detail=look.detail, max_tiles=look.max_tiles)


def neutral() -> Picture:
    """A plain mid-grey picture: as good as no picture at all."""
    import PIL.Image

    return Picture(PIL.Image.new("RGB", (NEUTRAL_SIDE, NEUTRAL_SIDE), (127, 127, 127)))
