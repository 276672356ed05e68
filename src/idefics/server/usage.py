"""What answers have cost, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from idefics.messages import Answer, Usage


def usage_of(*choices: Usage) -> dict[str, Any]:
    """What all choices cost together; they share their prompt, which the first one brought."""
    first = choices[0]
    words = sum(usage.completion_tokens for usage in choices)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": words,
        "total_tokens": first.prompt_tokens + words,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


def notes_of(answers: Iterable[Answer]) -> dict[str, list[str]]:
    """What was not read of the pictures' files, as a field of the answer; none where all was."""
    notes = list(dict.fromkeys(note for answer in answers for note in answer.notes))
    return {"notes": notes} if notes else {}


def usage_of_prompts(prompts: Iterable[Iterable[Usage]]) -> dict[str, Any]:
    """What several prompts cost together, each with its choices."""
    each = [usage_of(*choices) for choices in prompts]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in each)
    total = {name: sum(one[name] for one in each) for name in names}
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}
