"""`ExplanationMixin`: the method `explain` of `Idefics`, which says which parts of a picture carried an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from idefics.errors import BadSetting, IdeficsError
from idefics.explain.explanation import Explanation, Method
from idefics.generation.loading import LoadedModel
from idefics.messages import Detail, ImageDetail, PictureOrVideo, Shot
from idefics.tasks.explanation_call import ExplanationCall
from idefics.tasks.picture_arguments import parse_image_argument
from idefics.validation import reject_unknown_arguments, short_repr, validate_bool

if TYPE_CHECKING:
    from idefics.tasks.picture_arguments import PictureInput, PictureInputs


class ExplanationMixin:
    """Explains answers and rankings by attribution maps."""

    loaded_model: LoadedModel
    shots: tuple[Shot, ...]

    @overload
    def explain(
        self,
        picture: PictureInput | PictureInputs,
        question: str | None = ...,
        answer: str | None = ...,
        *,
        method: Method = ...,
        grid: int = ...,
        task: str = ...,
        labels: Sequence[str] | None = ...,
        earlier: Sequence[tuple[str, str]] = ...,
        stream: Literal[False] = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
        max_new_tokens: int | None = ...,
        timeout: float | None = ...,
    ) -> Explanation:
        """`explain` that waits: the explanation."""

    @overload
    def explain(
        self,
        picture: PictureInput | PictureInputs,
        question: str | None = ...,
        answer: str | None = ...,
        *,
        method: Method = ...,
        grid: int = ...,
        task: str = ...,
        labels: Sequence[str] | None = ...,
        earlier: Sequence[tuple[str, str]] = ...,
        stream: Literal[True],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        max_new_tokens: int | None = ...,
        timeout: float | None = ...,
    ) -> Iterator[Explanation]:
        """`explain` with `stream=True`: explanations that get finer."""

    @reject_unknown_arguments
    def explain(
        self,
        picture: PictureInput | PictureInputs,
        question: str | None = None,
        answer: str | None = None,
        *,
        method: Method = "occlusion",
        grid: int = 16,
        task: str = "ask",
        labels: Sequence[str] | None = None,
        earlier: Sequence[tuple[str, str]] = (),
        stream: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
        max_new_tokens: int | None = None,
        timeout: float | None = None,
    ) -> Explanation | Iterator[Explanation]:
        """Says how much each part of a picture carried each word of an answer, or each label of a ranking.

        Args:
            picture: a picture or a video in any form that `Picture` takes; or a list of pictures, which are all shown
                before the question.
            question: the question, or the text of another `task`.
            answer: the answer that is explained, which need not be the model's; None: the model's own, greedy.
            method: "occlusion" blurs parts of the picture in turn, at three sizes, and measures what each word loses of
                its log-probability, in nats. "fast" reads approximate maps from one pass; only for families whose image
                tokens lie in a grid over the picture (Idefics 3, SmolVLM), and its values are shares of attention.
            grid: cells of a map along the picture's longer edge, 4 to 64; parts are 1/2, 1/4 and 1/8 of that edge.
            task: the task whose prompt is used.
            labels: explain the ranking of these labels, as in `classify`, instead of an answer.
            earlier: the turns of a chat before the question, each its question and answer; the first shows the picture.
            stream: return an iterator of explanations that get finer. The first follows after 16 passes at most; ending
                the iterator ends the work.
            detail: into how many tiles pictures are split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames per picture; None: as many as the checkpoint makes.
            max_new_tokens: of the model's own answer; None: the task's default.
            timeout: seconds after which the call raises RequestTimeout; None: never.

        Returns:
            The explanation. Equal calls return explanations that are equal but for rounding (thousandths of a nat).

        Raises:
            BadRequest: a picture, a text or a setting is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> explanation = vlm.explain("photo.jpg", "What is on the table?")
            >>> explanation.save("map.png")
            >>> explanation.words[0].heat.shape
        """
        validate_bool("stream", stream)
        call = ExplanationCall(
            model=self.loaded_model,
            shots=self.shots,
            question=question,
            answer=answer,
            labels=labels,
            method=method,
            grid=grid,
            task_name=task,
            image_detail=ImageDetail(detail, max_tiles),
            max_new_tokens=max_new_tokens,
            timeout=timeout,
            earlier=_checked_turns(earlier),
        )
        pictures, _ = parse_image_argument(picture, "raise")
        given: list[PictureOrVideo] = []
        for one in pictures:
            if isinstance(one, IdeficsError):
                raise one
            given.append(one)
        explanations = call.prepare(given).run()
        return explanations if stream else deque(explanations, maxlen=1)[0]


def _checked_turns(earlier: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """The earlier turns; raises BadSetting unless each is a question and its answer."""
    turns: Sequence[object] = earlier if isinstance(earlier, (list, tuple)) else [earlier]
    for turn in turns:
        texts = turn if isinstance(turn, (list, tuple)) else ()
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise BadSetting(
                f"earlier has {short_repr(turn)}; give questions and answers: [('What is it?', 'A tower.')]"
            )
    return earlier
