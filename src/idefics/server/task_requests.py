"""Requests of the routes `/v1/images/tasks/...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, create_model

from idefics.messages import Detail, ImageDetail, Picture, Shot
from idefics.server import ignored_field_tables
from idefics.server.chat_messages import MAX_PICTURES, picture_from_url
from idefics.server.errors import APIError
from idefics.server.request_body import FILE_FIELD
from idefics.server.request_model import RequestModel
from idefics.server.sampling_fields import MAX_NEW_TOKENS, SamplingFields
from idefics.tasks import classify
from idefics.tasks.task import Task

MAX_BEAMS = 16
MAX_LABEL_CHARACTERS = 1024


class FewShotExample(RequestModel):
    """A picture with the answer that the model should give about it."""

    image_url: str
    answer: str
    question: str = ""


class PictureRequest(RequestModel):
    """A picture with its detail and few-shot examples. In a form, the picture may be the file `image`."""

    ignored_fields = ignored_field_tables.TASK_FIELDS

    image_url: str | None = None
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)
    shots: list[FewShotExample] = Field([], max_length=MAX_PICTURES - 1)

    def to_picture(self, file: bytes | None) -> Picture:
        """The picture to answer about, not fetched yet.

        Args:
            file: the file of the form, if there is one.

        Raises:
            APIError: 400, both a file and a URL are given, or neither.
        """
        if (file is None) == (self.image_url is None):
            raise APIError(
                400,
                f'give the picture as "image_url" or, in a form, as the file "{FILE_FIELD}": one of the two',
                param="image_url",
            )
        return Picture(file) if file is not None else picture_from_url(self.image_url or "")

    def to_image_detail(self) -> ImageDetail:
        """The detail for `Idefics.task_prompt`."""
        return ImageDetail(self.detail or "high", self.max_tiles)

    def to_shots(self) -> list[Shot]:
        """The examples for `Idefics.with_shots`, with pictures that are not fetched yet."""
        return [Shot(picture_from_url(shot.image_url), shot.answer, shot.question) for shot in self.shots]


class TaskRequest(PictureRequest, SamplingFields):
    """A picture, and options for the text about it."""

    max_new_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    stream: bool | None = None


def shot_texts(shots: Sequence[Shot]) -> Iterator[str]:
    """The questions and answers of all examples."""
    return (text for shot in shots for text in (shot.question, shot.answer))


class ClassificationRequest(PictureRequest):
    """A picture, and the labels to rank by likelihood."""

    labels: list[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]] = Field(
        min_length=2, max_length=classify.MAX_LABELS
    )
    length_normalized: bool = False
    calibrated: bool = False


TaskWords = Annotated[str, Field(min_length=1, pattern=r"\S")]


def request_class_for(task: Task) -> type[PictureRequest]:
    """The pydantic model of a task's requests; `words` is a field if the task has words."""
    if task is classify.TASK:
        return ClassificationRequest
    word_fields: dict[str, Any] = {}
    if task.words_name:
        word_fields["words"] = (TaskWords, task.default_words or ...)
    return create_model(
        f"{task.name.capitalize()}Request", __base__=TaskRequest, __doc__=task.help, **word_fields
    )
