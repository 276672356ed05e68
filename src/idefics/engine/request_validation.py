"""Validates a request against the sizes of the model, before it is queued."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from idefics.config import KVCacheLayout, Sampling
from idefics.engine.request import Request
from idefics.errors import BadPrompt, BadSetting, PromptTooLong
from idefics.prompt import Prompt


def validate_request(request: Request, layout: KVCacheLayout) -> int:
    """Checks the prompt, the continuations and `logit_bias` of a request.

    Returns:
        The maximum number of tokens to generate: 0 if continuations are scored.

    Raises:
        PromptTooLong: prompt and answer, or the longest continuation, do not fit into the model's positions.
        BadPrompt: the prompt is empty, or it or a continuation has an id that the model does not have.
        BadSetting: `logit_bias` has such an id.
    """
    continuations, biases = request.continuations, request.sampling.logit_bias
    if biases and (highest := max(biases)) >= layout.vocab_size:
        raise BadSetting(
            f"logit_bias names token {highest}; this model's tokens are 0 to {layout.vocab_size - 1}"
        )
    if continuations is None:
        return compute_max_new_tokens(request.prompt, request.sampling, layout)
    num_new_tokens = max(map(len, continuations), default=0)
    validate_prompt(request.prompt, layout, num_new_tokens, chain.from_iterable(continuations))
    return 0


def validate_prompt(
    prompt: Prompt, layout: KVCacheLayout, num_new_tokens: int, continuation_ids: Iterable[int] = ()
) -> None:
    """Checks that a prompt is not empty, leaves `num_new_tokens` positions, and has only ids of the vocabulary.

    Args:
        continuation_ids: further ids to check.

    Raises:
        PromptTooLong: it leaves fewer than `num_new_tokens` positions.
        BadPrompt: it is empty, or it or `continuation_ids` has an id that the model does not have.
    """
    if not prompt.ids:
        raise BadPrompt("the prompt is empty: give text, pictures or both")
    if len(prompt) + num_new_tokens > layout.max_positions:
        raise PromptTooLong(len(prompt), layout.max_positions - num_new_tokens, len(prompt.pictures))
    max_id = max(chain(prompt.ids, continuation_ids))
    if (
        max_id >= layout.vocab_size
    ):  # on a GPU the lookup would make the device unusable for the whole process
        raise BadPrompt(
            f"the prompt has token {max_id}, but this model's tokens are 0 to {layout.vocab_size - 1}: "
            "leave it out, or use the tokenizer of the same checkpoint"
        )


def compute_max_new_tokens(prompt: Prompt, sampling: Sampling, layout: KVCacheLayout) -> int:
    """The maximum number of tokens that can be generated after a prompt: at least one.

    Raises:
        PromptTooLong, BadPrompt: as `validate_prompt`.
    """
    validate_prompt(prompt, layout, num_new_tokens=1)
    return min(sampling.max_new_tokens, layout.max_positions - len(prompt))
