"""Logits processors for settings that constrain the next id, whether it is sampled or not.

R rows, B prompts, T ids so far, V vocabulary. Each is called with ids (R, T) and scores (R, V), and returns scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generate_call import GenerationRunner, LogitsProcessorFn, PrefixAllowedTokensFn
from idefics.errors import BadSetting


def check_ids_in_vocabulary(setting_name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises BadSetting where one of the ids is not in the vocabulary."""
    if out_of_range_ids := [id for id in ids if id >= vocab_size]:
        raise BadSetting(
            f"{setting_name} has id {max(out_of_range_ids)}; this model's ids are 0 to {vocab_size - 1}: "
            "use the tokenizer of the same checkpoint"
        )


def make_sequence_bias_processor(
    biases: Sequence[Sequence[Any]], vocab_size: int, device: torch.device
) -> LogitsProcessorFn:
    """The processor that adds a bias to the score of a sequence's last id, if the ids before it are the last so far.

    Args:
        biases: for each sequence its ids and its bias.
    """
    check_ids_in_vocabulary("sequence_bias", [id for ids, _ in biases for id in ids], vocab_size)
    single_id_bias = torch.zeros(vocab_size, device=device)
    sequence_biases = []
    for sequence, bias in biases:
        if len(sequence) == 1:
            single_id_bias[sequence[0]] = bias
        else:
            sequence_biases.append((torch.tensor(sequence[:-1], device=device), sequence[-1], bias))

    def add_biases(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores + single_id_bias
        for beginning, last, bias in sequence_biases:
            if len(beginning) <= ids.shape[1]:
                scores[:, last] += bias * (ids[:, -len(beginning) :] == beginning).all(-1)
        return scores

    return add_biases


def keep_allowed_tokens(
    ids: Tensor, scores: Tensor, *, allowed_tokens_fn: PrefixAllowedTokensFn, rows_per_prompt: int
) -> Tensor:
    """Sets all scores to -inf but those of the ids that the caller's function allows (`prefix_allowed_tokens_fn`).

    Args:
        allowed_tokens_fn: (index of the prompt, ids (T,) of a row) -> ids that may follow.
        rows_per_prompt: answers or beams of each prompt.

    Raises:
        BadSetting: the function allows no id.
    """
    mask = torch.full_like(scores, -torch.inf)
    for row, so_far in enumerate(ids):
        allowed_ids = list(allowed_tokens_fn(row // rows_per_prompt, so_far))
        if not allowed_ids:
            raise BadSetting(
                f"prefix_allowed_tokens_fn allows no id in prompt {row // rows_per_prompt} after "
                f"{so_far.tolist()[-5:]}: return at least one"
            )
        mask[row, allowed_ids] = 0
    masked_scores = scores + mask
    # Where other settings forbid all allowed ids in every beam, the function has priority.
    row_has_none = masked_scores.amax(-1).isneginf().view(-1, rows_per_prompt)
    prompt_has_none = row_has_none.all(-1).repeat_interleave(rows_per_prompt)
    return torch.where(prompt_has_none[:, None], mask, masked_scores)


def increase_stop_scores(
    ids: Tensor, scores: Tensor, *, start_length: int, factor: float, stop_ids: list[int]
) -> Tensor:
    """Raises the scores of the stop ids by |score| * (factor ** (T - start_length) - 1) if T > `start_length`."""
    num_ids_past_start = ids.shape[1] - start_length
    if num_ids_past_start <= 0:
        return scores
    stop_scores = scores[:, stop_ids]
    increase = stop_scores.abs() * (factor**num_ids_past_start - 1)
    scores = scores.clone()
    scores[:, stop_ids] = stop_scores + increase.masked_fill(~stop_scores.isfinite(), 0.0)
    return scores


def apply_guidance(
    ids: Tensor, scores: Tensor, *, scale: float, negative_runner: GenerationRunner, prompt_length: int
) -> Tensor:
    """Moves scores away from those after other prompts: negative + scale * (scores - negative) (arXiv 2306.17806).

    Args:
        scale: 1 has no effect.
        negative_runner: runs the model on the other prompts.
        prompt_length: the number of ids of a prompt, after which answers begin.
    """
    answers = ids[:, prompt_length:]
    if answers.shape[1] == 0:
        logits = negative_runner.prefill()
    else:
        logits = negative_runner.decode_step(torch.cat((negative_runner.prompt_ids, answers), dim=1))
    negative_scores = logits.log_softmax(-1)
    return scale * (scores.log_softmax(-1) - negative_scores) + negative_scores
