"""`Idefics`: a pipeline with the tasks as methods."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence, Set, ValuesView
from io import IOBase
from typing import TYPE_CHECKING, Literal, Unpack, cast, overload

from idefics.calls import checked_flag, checked_text, in_order, public
from idefics.engine.handle import Handle
from idefics.engine.request import Request
from idefics.errors import BadPrompt
from idefics.messages import Answer, Detail, ImageDetail, Picture, Ranking, Shot, Timings, Visual
from idefics.options import Options, with_options
from idefics.pipeline import Pipeline, Reply, Stream
from idefics.pipeline.ahead import ahead
from idefics.processing.video import as_visual
from idefics.prompt import Prompt
from idefics.tasks import TASKS, classify
from idefics.tasks.record import Task, compose
from idefics.tasks.write import STORY

if TYPE_CHECKING:
    from idefics.messages import PictureSource
    from idefics.processing.processor import Endings

    One = Visual | PictureSource
    Many = Sequence[One]

NEUTRAL_SIDE = 64  # of the plain grey picture that stands for "no picture in particular"


class Idefics(Pipeline):
    """A loaded model. Every method takes one picture and gives one result, or a list and gives a list.

    A picture is a path, bytes, a `PIL.Image`, a NumPy array, an http(s) URL, a data URI, or a `Picture` of these.
    A checkpoint that was trained with video takes one wherever a picture goes: a path or address that ends like a
    video's, or a `Video`.
    All but `classify` take the `Options` of `generate`, and `stream=True` for one picture.
    """

    shots: tuple[Shot, ...] = ()

    @public
    def with_shots(self, shots: Sequence[Shot]) -> Idefics:
        """The same model (nothing is copied) whose tasks follow worked examples.

        Args:
            shots: the examples, in their order.
        """
        given = in_order("shots", shots, "a list of Shot(Picture(...), answer)")
        if not all(isinstance(shot, Shot) for shot in given):
            raise BadPrompt("with_shots takes a list of Shot(Picture(...), answer)")
        other = copy.copy(self)
        other.shots = tuple(given)
        return other

    @overload
    def caption(self, image: One, *, stream: Literal[False] = ..., **o: Unpack[Options]) -> Answer: ...  # type: ignore[overload-overlap]  # a str is one picture
    @overload
    def caption(self, image: Many, *, stream: Literal[False] = ..., **o: Unpack[Options]) -> list[Answer]: ...
    @overload
    def caption(self, image: One, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @with_options(max_new_tokens=TASKS["caption"].max_new_tokens)
    def caption(self, image: One | Many, *, stream: bool = False, **o: Unpack[Options]) -> Reply:
        """Says what a picture shows, with no words from the caller."""
        return self.run(TASKS["caption"], image, stream=stream, **o)

    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is one picture
        self, image: One, text: str, *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> Answer: ...
    @overload
    def complete(
        self, image: Many, text: str, *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> list[Answer]: ...
    @overload
    def complete(self, image: One, text: str, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @with_options(max_new_tokens=TASKS["complete"].max_new_tokens)
    def complete(self, image: One | Many, text: str, *, stream: bool = False, **o: Unpack[Options]) -> Reply:
        """Continues the caller's words about a picture; the answer's text begins with them."""
        words = checked_text("text", text, "This is an image of").strip()
        return self.run(TASKS["complete"], image, words, stream=stream, **o)

    @overload
    def ask(  # type: ignore[overload-overlap]  # a str is one picture
        self, image: One, question: str, *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> Answer: ...
    @overload
    def ask(
        self, image: Many, question: str, *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> list[Answer]: ...
    @overload
    def ask(self, image: One, question: str, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @with_options(max_new_tokens=TASKS["ask"].max_new_tokens)
    def ask(self, image: One | Many, question: str, *, stream: bool = False, **o: Unpack[Options]) -> Reply:
        """Answers a question about a picture."""
        words = checked_text("question", question, "What is on the table?")
        return self.run(TASKS["ask"], image, words, stream=stream, **o)

    @overload
    def write(  # type: ignore[overload-overlap]  # a str is one picture
        self, image: One, instruction: str = ..., *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> Answer: ...
    @overload
    def write(
        self, image: Many, instruction: str = ..., *, stream: Literal[False] = ..., **o: Unpack[Options]
    ) -> list[Answer]: ...
    @overload
    def write(
        self, image: One, instruction: str = ..., *, stream: Literal[True], **o: Unpack[Options]
    ) -> Stream: ...
    @with_options(max_new_tokens=TASKS["write"].max_new_tokens)
    def write(
        self, image: One | Many, instruction: str = STORY, *, stream: bool = False, **o: Unpack[Options]
    ) -> Reply:
        """Writes a text guided by a picture: a story, unless the instruction asks for something else."""
        words = checked_text("instruction", instruction, STORY, blank=True)
        return self.run(TASKS["write"], image, words, stream=stream, **o)

    def run(
        self, task: Task, image: One | Many, words: str = "", *, stream: bool = False, **o: Unpack[Options]
    ) -> Reply:
        """Any task of TASKS but `classify`, by its record."""
        began = time.perf_counter()
        o.setdefault("max_new_tokens", task.max_new_tokens)
        look = ImageDetail(o.pop("detail", "high"), o.pop("max_tiles", None))

        def make(picture: Visual) -> Prompt:
            return self.task_prompt(task, picture, words, look)

        start = words if task.name == "complete" else ""
        return self._reply(make, _pictures(image), _is_many(image), stream, began, o, start=start)

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
    ) -> Ranking: ...
    @overload
    def classify(
        self,
        image: Many,
        labels: Sequence[str],
        *,
        length_normalized: bool = ...,
        calibrated: bool = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
    ) -> list[Ranking]: ...
    @public
    def classify(
        self,
        image: One | Many,
        labels: Sequence[str],
        *,
        length_normalized: bool = False,
        calibrated: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Ranking | list[Ranking]:
        """Ranks labels by the summed log-probability of each one's tokens as the answer.

        The picture and the prompt are read once, all labels in one pass after them.

        Args:
            image: a picture or a list of pictures, as in `ask`.
            labels: 2 to 1000; up to 20 are listed in the prompt.
            length_normalized: divide each sum by the label's number of tokens.
            calibrated: subtract what the model says of a plain grey picture, so that labels it likes anyway
                gain nothing by it (arXiv 2102.09690).
            detail, max_tiles: how closely pictures are looked at; see `ImageDetail`.
        """
        look = ImageDetail(detail, max_tiles)
        by_length = checked_flag("length_normalized", length_normalized)
        wanted = classify.checked(labels)
        task, words = classify.worded(wanted, self.processor.style.kind)
        prior = (
            self._label_scores(task, words, wanted, neutral(), look).scores
            if checked_flag("calibrated", calibrated)
            else None
        )

        def rank(picture: Visual) -> Ranking:
            return self._ranking(task, words, wanted, picture, look, prior, by_length)

        rankings = list(ahead(rank, _pictures(image)))
        return rankings if _is_many(image) else rankings[0]

    def _ranking(
        self,
        task: Task,
        words: str,
        labels: list[str],
        picture: Visual,
        look: ImageDetail,
        prior: list[list[float]] | None,
        length_normalized: bool,
    ) -> Ranking:
        began = time.perf_counter()
        handle = self._label_scores(task, words, labels, picture, look)
        seconds = time.perf_counter() - began
        return Ranking(
            classify.ranked(labels, handle.scores, prior, length_normalized=length_normalized),
            handle.usage,
            Timings(0.0, seconds, seconds),
        )

    def _label_scores(
        self, task: Task, words: str, labels: list[str], picture: Visual, look: ImageDetail
    ) -> Handle:
        prompt, rests = self.label_endings(task, words, labels, picture, look)
        return self.engine.submit(Request(prompt, endings=rests), wait=True).result()

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

    def _plain(self) -> Idefics:
        """The same model, to which special tokens in a task's words are plain characters, whatever its kind."""
        other = copy.copy(self)
        other.processor = copy.copy(self.processor)
        other.processor.trusts_text = False
        return other

    def task_prompt(self, task: Task, picture: Visual, words: str, look: ImageDetail) -> Prompt:
        """What any other task asks of the engine."""
        composed = compose(task, self.processor.style.kind, picture, words, self.shots)
        return self._plain().prompt(
            composed.items,
            answer_start=composed.answer_start,
            detail=look.detail,
            max_tiles=look.max_tiles,
        )


def _pictures(image: One | Many) -> list[Visual]:
    if not _is_many(image):
        return [as_visual(cast("One", image))]
    listed = in_order("image", image, "a picture or a list of pictures", error=BadPrompt)
    if not listed:
        raise BadPrompt("the list of pictures is empty: give at least one")
    return [as_visual(one) for one in listed]


def _is_many(image: object) -> bool:
    """Whether a call is given a list of pictures, or what gives several; a file that is open gives its lines."""
    is_one = isinstance(image, (str, bytes, IOBase))
    return isinstance(image, (Sequence, Set, ValuesView, Iterator)) and not is_one


def neutral() -> Picture:
    """A plain mid-grey picture: as good as no picture at all."""
    import PIL.Image

    return Picture(PIL.Image.new("RGB", (NEUTRAL_SIDE, NEUTRAL_SIDE), (127, 127, 127)))


load = Idefics.load
