"""What answers have cost, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from idefics.messages import Usage


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


def usage_of_prompts(prompts: Iterable[Iterable[Usage]]) -> dict[str, Any]:
    """What several prompts cost together, each with its choices."""
    each = [usage_of(*choices) for choices in prompts]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in each)
    total = {name: sum(one[name] for one in each) for name in names}
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}
