"""How likely the tokens of a prompt itself are, each after those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from idefics.messages import Alternative, Delta
from idefics.server.request_context import RequestContext

if TYPE_CHECKING:
    from idefics.processing.processor import ScoringPrompt
    from idefics.prompt import Prompt

CHUNK_TOKENS = 512  # tokens that are scored at once: what is computed for them grows with their square


async def compute_prompt_logprobs(
    context: RequestContext, make_prompt: Callable[[], Prompt], text: str, num_top_logprobs: int
) -> Delta:
    """A prompt of text alone, as if it were an answer: its tokens with their natural-log probabilities.

    It is scored piece by piece: each is an ending of what comes before it, which the prefix cache knows.

    Args:
        make_prompt: the prompt, in a worker.
        text: what it is made of. What the tokenizer puts before it is not among the tokens.
        num_top_logprobs: so many of the likeliest tokens in the place of each are told.

    Returns:
        The text and its tokens. The log-probability of the first one is NaN where nothing at all is before it.

    Raises:
        Fault, IdeficsError: as `Visit.scores`.
    """
    prompt = await context.run_in_worker(make_prompt)
    num_opening_tokens = context.service.vlm.processor.num_prefix_tokens
    logprobs = [math.nan] * (num_opening_tokens == 0)
    top_logprobs: list[tuple[Alternative, ...]] = [()] * (num_opening_tokens == 0)
    for start in range(max(num_opening_tokens, 1), len(prompt), CHUNK_TOKENS):
        chunk = prompt.ids[start : start + CHUNK_TOKENS]
        handle = await context.score_continuations(
            partial(_as_scoring_prompt, prompt, start, chunk),
            num_top_logprobs=num_top_logprobs,
            counts_prompt=False,
        )
        logprobs += handle.continuation_logprobs[0]
        top_logprobs += handle.continuation_top_logprobs[0]
    return Delta(
        text,
        prompt.ids[num_opening_tokens:],
        tuple(logprobs),
        tuple(top_logprobs) if num_top_logprobs else None,
    )


def _as_scoring_prompt(prompt: Prompt, start: int, continuation: tuple[int, ...]) -> ScoringPrompt:
    return prompt.text_prefix(start), (continuation,)
