"""Fields that the answers of several routes share.

An answer is a plain dictionary. Its `TypedDict` checks the code that builds it, and is its schema in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from idefics.messages import Answer, Usage

ResponseFinishReason = Literal["stop", "length"]  # those of `FinishReason` that are sent


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


class StreamUsageField(ResponseFields):
    """Base of the events of a stream: with `include_usage`, the last one has the usage and the others have null."""

    usage: NotRequired[CompletionUsage | None]


def finish_reason(answer: Answer) -> ResponseFinishReason:
    """Why an answer ended. Cancelled answers are never sent: `RequestContext.deltas` raises instead."""
    assert answer.finish != "cancelled"
    return answer.finish


def collect_notes(answers: Iterable[Answer]) -> NotesField:
    """The notes of all answers, each once."""
    notes = list(dict.fromkeys(note for answer in answers for note in answer.notes))
    return {"notes": notes} if notes else {}


def usage_of_choices(*choices: Usage) -> CompletionUsage:
    """The usage of all choices of one prompt: the prompt counts once, with the cached tokens of the first choice."""
    first = choices[0]
    num_completion_tokens = sum(usage.completion_tokens for usage in choices)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": first.prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


def sum_usage_of_prompts(prompts: Iterable[Iterable[Usage]]) -> CompletionUsage:
    """The usage of several prompts, each given as the usage of its choices."""
    usages = [usage_of_choices(*choices) for choices in prompts]
    return {
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "completion_tokens": sum(usage["completion_tokens"] for usage in usages),
        "total_tokens": sum(usage["total_tokens"] for usage in usages),
        "prompt_tokens_details": {
            "cached_tokens": sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
        },
    }
