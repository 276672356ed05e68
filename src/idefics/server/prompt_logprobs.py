"""Log-probabilities of the tokens of a prompt (`echo` with `logprobs` of `/v1/completions`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from idefics.messages import Alternative, Delta
from idefics.prompt import ScoringPrompt
from idefics.server.request_context import RequestContext

if TYPE_CHECKING:
    from idefics.prompt import Prompt

CHUNK_TOKENS = 512  # tokens scored at once; the cost of a chunk grows with the square of its length


async def compute_prompt_logprobs(
    context: RequestContext, make_prompt: Callable[[], Prompt], text: str, num_top_logprobs: int
) -> Delta:
    """Scores the tokens of a prompt without pictures.

    Each chunk of tokens is scored as a continuation of the tokens before it, which are in the prefix cache by then.

    Args:
        make_prompt: makes the prompt, in a thread.
        text: the text of the prompt. Tokens that the tokenizer adds before it are not scored.
        num_top_logprobs: number of most likely tokens to report at each position.

    Returns:
        The text, its tokens and their natural-log probabilities; NaN for a first token that no token comes before.

    Raises:
        APIError, IdeficsError: as in `RequestContext.score_continuations`.
    """
    prompt = await context.run_in_worker(make_prompt)
    num_opening_tokens = context.service.vlm.processor.num_raw_prompt_prefix_tokens
    logprobs = [math.nan] * (num_opening_tokens == 0)
    top_logprobs: list[tuple[Alternative, ...]] = [()] * (num_opening_tokens == 0)
    for start in range(max(num_opening_tokens, 1), len(prompt), CHUNK_TOKENS):
        chunk = prompt.ids[start : start + CHUNK_TOKENS]
        handle = await context.score_continuations(
            partial(_as_scoring_prompt, prompt, start, chunk),
            num_top_logprobs=num_top_logprobs,
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
    """A prompt cut before position `start`, with the tokens to score after it."""
    return ScoringPrompt(prompt.text_prefix(start), (continuation,))
