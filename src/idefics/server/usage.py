"""What answers have cost, as OpenAI's clients read it."""

from __future__ import annotations

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
