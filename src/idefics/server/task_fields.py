"""Fields of the answers of the task routes."""

from __future__ import annotations

from typing import Literal, NotRequired

from idefics.server.response_fields import (
    CompletionUsage,
    NotesField,
    ProgressFields,
    ResponseFields,
    ResponseFinishReason,
)


class TaskUsage(CompletionUsage):
    """Number of tokens and pictures of a request."""

    pictures: int


class TaskFinalFields(NotesField):
    """Fields of a complete answer, which are also those of the last event of a stream.

    Attributes:
        logprob: natural-log probability of the whole answer: the sum over its tokens; only with `logprobs`.
    """

    finish_reason: ResponseFinishReason
    usage: TaskUsage
    logprob: NotRequired[float]


class TaskResponse(TaskFinalFields):
    """The text that a task generated about a picture."""

    object: Literal["image.task"]
    task: str
    text: str


class TaskTextEvent(ResponseFields):
    """An event of a stream: what it adds to the text."""

    text: str


class TaskProgressEvent(TaskTextEvent):
    """An event before the text, with `include_progress`; its text is empty."""

    progress: ProgressFields


class TaskFinalEvent(TaskTextEvent, TaskFinalFields):
    """The last event of a stream; its text is empty."""


class LabelScore(ResponseFields):
    """A label: its probability among all labels, which add up to 1, and its natural-log score."""

    label: str
    probability: float
    logprob: float


class ClassificationResponse(NotesField):
    """The labels, from the most to the least likely."""

    object: Literal["image.task"]
    task: str
    labels: list[LabelScore]
    usage: TaskUsage
