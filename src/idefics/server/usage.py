"""What answers have cost, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Sequence

from idefics.messages import Answer


def usage_of(answers: Sequence[Answer]) -> dict[str, int]:
    """What all choices cost together; they share their prompt."""
    prompt = answers[0].usage.prompt_tokens
    words = sum(answer.usage.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}
