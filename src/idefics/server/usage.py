"""What answers have cost, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from idefics.messages import Answer, Usage


def sum_usage(*choices: Usage) -> dict[str, Any]:
    """What all choices cost together; they share their prompt, which the first one brought."""
    first = choices[0]
    num_completion_tokens = sum(usage.completion_tokens for usage in choices)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": first.prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


def collect_notes(answers: Iterable[Answer]) -> dict[str, list[str]]:
    """What was not read of the pictures' files, as a field of the answer; none where all was."""
    notes = list(dict.fromkeys(note for answer in answers for note in answer.notes))
    return {"notes": notes} if notes else {}


def sum_usage_of_prompts(prompts: Iterable[Iterable[Usage]]) -> dict[str, Any]:
    """What several prompts cost together, each with its choices."""
    usages = [sum_usage(*choices) for choices in prompts]
    field_names = ("prompt_tokens", "completion_tokens", "total_tokens")
    num_cached_tokens = sum(one["prompt_tokens_details"]["cached_tokens"] for one in usages)
    total = {name: sum(one[name] for one in usages) for name in field_names}
    return {**total, "prompt_tokens_details": {"cached_tokens": num_cached_tokens}}
