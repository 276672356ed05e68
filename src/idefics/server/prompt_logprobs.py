"""How likely the tokens of a prompt itself are, each after those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from idefics.messages import Alternative, Delta
from idefics.server.visit import Visit

if TYPE_CHECKING:
    from idefics.processing.processor import Endings
    from idefics.prompt import Prompt

PIECE = 512  # tokens that are scored at once: what is computed for them grows with their square


async def prompt_logprobs(visit: Visit, make: Callable[[], Prompt], text: str, top: int) -> Delta:
    """A prompt of text alone, as if it were an answer: its tokens with their natural-log probabilities.

    It is scored piece by piece: each is an ending of what comes before it, which the prefix cache knows.

    Args:
        make: the prompt, in a worker.
        text: what it is made of. What the tokenizer puts before it is not among the tokens.
        top: so many of the likeliest tokens in the place of each are told.

    Returns:
        The text and its tokens. The log-probability of the first one is NaN where nothing at all is before it.

    Raises:
        Fault, IdeficsError: as `Visit.scores`.
    """
    prompt = await visit.aside(make)
    opening = visit.service.vlm.processor.num_opening_tokens
    logprobs = [math.nan] * (opening == 0)
    tops: list[tuple[Alternative, ...]] = [()] * (opening == 0)
    for start in range(max(opening, 1), len(prompt), PIECE):
        ending = prompt.ids[start : start + PIECE]
        handle = await visit.scores(partial(_split, prompt, start, ending), top=top, is_counted=False)
        logprobs += handle.scores[0]
        tops += handle.score_tops[0]
    return Delta(text, prompt.ids[opening:], tuple(logprobs), tuple(tops) if top else None)


def _split(prompt: Prompt, start: int, ending: tuple[int, ...]) -> Endings:
    return prompt.until(start), (ending,)
