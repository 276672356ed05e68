"""Fields that the answers of several routes share, and those of the task routes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from idefics.engine.handle import RequestHandle
from idefics.engine.request import ProgressStage
from idefics.messages import Answer
from idefics.prompt import Prompt

ResponseFinishReason = Literal["stop", "length"]  # cancelled answers are never sent


@with_config(ConfigDict(extra="forbid"))
class ResponseFields(TypedDict):
    """Base of all JSON objects in responses. Their schemas allow no other fields."""


class NotesField(ResponseFields):
    """Base of responses that may have notes about their pictures.

    Attributes:
        notes: what was not read of the picture files, such as further frames; left out where everything was read.
    """

    notes: NotRequired[list[str]]


class PromptTokensDetails(ResponseFields):
    """Number of prompt tokens found in the prefix cache."""

    cached_tokens: int


class CompletionUsage(ResponseFields):
    """Tokens of a request: of its prompts, and of all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChoicesFields(NotesField):
    """Fields of the answers of `/v1/chat/completions` and `/v1/completions`, streamed or not."""

    id: str
    created: int
    model: str


class ProgressFields(ResponseFields):
    """How far a request is that has no token yet: how many of a stage are done, and how many there are.

    The stages: `pictures` opened; `queued` behind `total` others; `tiles` encoded; tokens of the `prompt` computed;
    `passes` of an explanation.
    """

    stage: ProgressStage
    done: int
    total: int


class ProgressField(ResponseFields):
    """Base of the events of a stream: with `include_progress`, those before the first token have the progress."""

    progress: NotRequired[ProgressFields]


class StreamUsageField(ResponseFields):
    """Base of the events of a stream: with `include_usage`, the last one has the usage and the others have null."""

    usage: NotRequired[CompletionUsage | None]


def collect_notes(noted: Iterable[Answer | Prompt]) -> NotesField:
    """The field `notes` with the notes of all answers or prompts, each once; {} if there are none."""
    notes = list(dict.fromkeys(note for one in noted for note in one.notes))
    return {"notes": notes} if notes else {}


def sum_usage(choices: Sequence[Answer | RequestHandle], num_choices: int = 1) -> CompletionUsage:
    """The usage of all prompts and their choices. A prompt counts once, with the cached tokens of its first choice.

    Args:
        choices: all choices: those of the first prompt, then those of the second, and so on.
        num_choices: number of choices of each prompt.
    """
    prompts = [choice.usage for choice in choices[::num_choices]]
    return completion_usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(choice.usage.completion_tokens for choice in choices),
        sum(usage.cached_tokens for usage in prompts),
    )


def completion_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> CompletionUsage:
    """The usage with these numbers of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


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
