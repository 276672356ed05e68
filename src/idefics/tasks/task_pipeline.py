"""What the tasks' methods share: prompts worded for the checkpoint, worked examples, one picture or several."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self, Unpack, cast

from idefics.errors import BadPrompt, IdeficsError
from idefics.generation import GenerationResult, Pipeline
from idefics.generation.error_policy import ErrorPolicy, result_or_error
from idefics.media_sources import (
    BinaryFile,
    is_array_like,
    is_list_array,
    is_multi_frame_image,
    is_tensor,
    to_numpy_array,
)
from idefics.messages import ImageDetail, PictureOrVideo, Shot
from idefics.options import OnError, Options
from idefics.processing.video import to_picture_or_video
from idefics.prompt import Prompt
from idefics.tasks.task import Task, compose_task_prompt
from idefics.validation import describe_type, reject_unknown_arguments, validate_list

if TYPE_CHECKING:
    from idefics.messages import PictureSource

    PictureInput = PictureOrVideo | PictureSource
    PictureInputs = Sequence[PictureInput]


class TaskPipeline(Pipeline):
    """A pipeline that runs tasks by their records."""

    shots: tuple[Shot, ...] = ()

    @reject_unknown_arguments
    def with_shots(self, shots: Sequence[Shot]) -> Self:
        """The same model (nothing is copied) whose tasks follow worked examples.

        Args:
            shots: the examples, in their order.
        """
        shot_list = validate_list("shots", shots, "a list of Shot(Picture(...), answer)")
        for index, shot in enumerate(shot_list):
            if not isinstance(shot, Shot):
                raise BadPrompt(
                    f"shots[{index}] is {describe_type(shot)}; give Shot(Picture('photo.jpg'), 'A puppy.'), a picture and "
                    "the answer that it should have, or a file of them: read_shots('shots.jsonl')"
                )
        copied = copy.copy(self)
        copied.shots = tuple(shot_list)
        return copied

    def run(
        self,
        task: Task,
        image: PictureInput | PictureInputs,
        words: str = "",
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Any task of TASKS but `classify`, by its record."""
        start_time = time.perf_counter()
        options.setdefault("max_new_tokens", task.max_new_tokens)
        image_detail = ImageDetail(options.pop("detail", "high"), options.pop("max_tiles", None))

        def make_prompt(picture: PictureOrVideo | IdeficsError) -> Prompt:
            return self.task_prompt(task, picture_or_raise(picture), words, image_detail)

        pictures, error_policy = parse_pictures(image, on_error, stream)
        text_prefix = words if task.name == "complete" else ""
        return self._generate(
            make_prompt, pictures, error_policy, start_time, options, text_prefix=text_prefix
        )

    def _with_plain_text(self) -> Self:
        """The same model, to which special tokens in a task's words are plain characters, whatever its kind."""
        copied = copy.copy(self)
        copied.processor = copy.copy(self.processor)
        copied.processor.is_text_trusted = False
        return copied

    def task_prompt(
        self, task: Task, picture: PictureOrVideo, words: str, image_detail: ImageDetail
    ) -> Prompt:
        """What any other task asks of the engine."""
        task_prompt = compose_task_prompt(task, self.processor.prompt_format.kind, picture, words, self.shots)
        return self._with_plain_text().prompt(
            task_prompt.items,
            answer_start=task_prompt.answer_start,
            detail=image_detail.detail,
            max_tiles=image_detail.max_tiles,
        )


def parse_pictures(
    image: PictureInput | PictureInputs, on_error: OnError, stream: bool = False
) -> tuple[list[PictureOrVideo | IdeficsError], ErrorPolicy]:
    """The pictures of a call, or why one of them is none, and what the call does about errors."""
    if not _is_picture_list(image):
        return [to_picture_or_video(cast("PictureOrVideo", image))], ErrorPolicy(
            "picture", 0, on_error, stream
        )
    given = to_numpy_array(image) if is_array_like(image) else image
    if not isinstance(
        given, Iterator
    ):  # a generator's pictures may be one object that changes: made as they come
        given = validate_list("image", given, "a picture or a list of pictures", error_type=BadPrompt)
        _refuse_repeated(given)
    pictures = [result_or_error(to_picture_or_video, one) for one in given]
    if not pictures:
        raise BadPrompt("the list of pictures is empty: give at least one")
    return pictures, ErrorPolicy("picture", len(pictures), on_error, stream)


def _refuse_repeated(pictures: Sequence[object]) -> None:
    """Refuses a Pillow picture of several frames that stands in a list for more than one of them."""
    several = [id(one) for one in pictures if is_multi_frame_image(one)]
    if len(set(several)) < len(several):
        raise BadPrompt(
            "one Pillow picture of several frames stands in the list more than once, and shows one frame: give copies, "
            "[page.copy() for page in PIL.ImageSequence.Iterator(picture)]"
        )


def picture_or_raise(picture: PictureOrVideo | IdeficsError) -> PictureOrVideo:
    """A picture; raises what stands in its place."""
    if isinstance(picture, IdeficsError):
        raise picture
    return picture


def _is_picture_list(image: object) -> bool:
    """Whether a call is given a list of pictures, or what gives several; a file that is open gives its lines."""
    if isinstance(image, (str, bytes, bytearray, memoryview, Mapping, BinaryFile)) or is_tensor(image):
        return False
    if is_array_like(image):
        return is_list_array(to_numpy_array(image))
    return isinstance(image, Iterable)
