"""What the tasks' methods share: prompts worded for the checkpoint, worked examples, one picture or several."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self, Unpack, cast

from idefics.calls import in_order, kind_of, public
from idefics.errors import BadPrompt, IdeficsError
from idefics.messages import ImageDetail, Shot, Visual
from idefics.options import OnError, Options
from idefics.pipeline import Pipeline, Reply
from idefics.pipeline.failures import Failures, attempt
from idefics.processing.video import as_visual
from idefics.prompt import Prompt
from idefics.sources import (
    BinaryFile,
    as_array,
    is_array_like,
    is_list_of_things,
    is_multi_frame,
    is_tensor,
)
from idefics.tasks.record import Task, compose

if TYPE_CHECKING:
    from idefics.messages import PictureSource

    One = Visual | PictureSource
    Many = Sequence[One]


class TaskPipeline(Pipeline):
    """A pipeline that runs tasks by their records."""

    shots: tuple[Shot, ...] = ()

    @public
    def with_shots(self, shots: Sequence[Shot]) -> Self:
        """The same model (nothing is copied) whose tasks follow worked examples.

        Args:
            shots: the examples, in their order.
        """
        given = in_order("shots", shots, "a list of Shot(Picture(...), answer)")
        for index, shot in enumerate(given):
            if not isinstance(shot, Shot):
                raise BadPrompt(
                    f"shots[{index}] is {kind_of(shot)}; give Shot(Picture('photo.jpg'), 'A puppy.'), a picture and "
                    "the answer that it should have, or a file of them: read_shots('shots.jsonl')"
                )
        other = copy.copy(self)
        other.shots = tuple(given)
        return other

    def run(
        self,
        task: Task,
        image: One | Many,
        words: str = "",
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **o: Unpack[Options],
    ) -> Reply:
        """Any task of TASKS but `classify`, by its record."""
        began = time.perf_counter()
        o.setdefault("max_new_tokens", task.max_new_tokens)
        look = ImageDetail(o.pop("detail", "high"), o.pop("max_tiles", None))

        def make(picture: Visual | IdeficsError) -> Prompt:
            return self.task_prompt(task, there(picture), words, look)

        pictures, failures = given_pictures(image, on_error, stream)
        start = words if task.name == "complete" else ""
        return self._reply(make, pictures, failures, began, o, start=start)

    def _plain(self) -> Self:
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


def given_pictures(
    image: One | Many, on_error: OnError, stream: bool = False
) -> tuple[list[Visual | IdeficsError], Failures]:
    """The pictures of a call, or why one of them is none, and what the call does about errors."""
    if not _is_many(image):
        return [as_visual(cast("One", image))], Failures("picture", 0, on_error, stream)
    given = as_array(image) if is_array_like(image) else image
    if not isinstance(
        given, Iterator
    ):  # a generator's pictures may be one object that changes: made as they come
        given = in_order("image", given, "a picture or a list of pictures", error=BadPrompt)
        _refuse_repeated(given)
    listed = [attempt(as_visual, one) for one in given]
    if not listed:
        raise BadPrompt("the list of pictures is empty: give at least one")
    return listed, Failures("picture", len(listed), on_error, stream)


def _refuse_repeated(pictures: Sequence[object]) -> None:
    """Refuses a Pillow picture of several frames that stands in a list for more than one of them."""
    several = [id(one) for one in pictures if is_multi_frame(one)]
    if len(set(several)) < len(several):
        raise BadPrompt(
            "one Pillow picture of several frames stands in the list more than once, and shows one frame: give copies, "
            "[page.copy() for page in PIL.ImageSequence.Iterator(picture)]"
        )


def there(picture: Visual | IdeficsError) -> Visual:
    """A picture; raises what stands in its place."""
    if isinstance(picture, IdeficsError):
        raise picture
    return picture


def _is_many(image: object) -> bool:
    """Whether a call is given a list of pictures, or what gives several; a file that is open gives its lines."""
    if isinstance(image, (str, bytes, bytearray, memoryview, Mapping, BinaryFile)) or is_tensor(image):
        return False
    if is_array_like(image):
        return is_list_of_things(as_array(image))
    return isinstance(image, Iterable)
