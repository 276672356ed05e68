"""Logits processors for settings that constrain the next id, whether it is sampled or not.

R rows, B prompts, T ids so far, V vocabulary. Each is called with ids (R, T) and scores (R, V), and returns scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.compat.generate_call import PrefixAllowedTokensFn
from idefics.compat.generation_runner import GenerationRunner
from idefics.errors import BadSetting


def check_ids_in_vocabulary(setting_name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises BadSetting where one of the ids is not in the vocabulary."""
    if out_of_range_ids := [id for id in ids if id >= vocab_size]:
        raise BadSetting(
            f"{setting_name} has id {max(out_of_range_ids)}; this model's ids are 0 to {vocab_size - 1}: "
            "use the tokenizer of the same checkpoint"
        )


class SequenceBiasProcessor:
    """Adds a bias to the score of the last id of a sequence where the ids before it precede (`sequence_bias`).

    Args:
        biases: [ids, number] of each sequence.
    """

    def __init__(
        self, biases: Sequence[tuple[list[int], float]], vocab_size: int, device: torch.device
    ) -> None:
        check_ids_in_vocabulary("sequence_bias", [id for ids, _ in biases for id in ids], vocab_size)
        self.single_id_bias = torch.zeros(vocab_size, device=device)
        for ids, bias in biases:
            if len(ids) == 1:
                self.single_id_bias[ids[0]] = bias
        self.sequence_biases = [
            (torch.tensor(ids[:-1], device=device), ids[-1], bias) for ids, bias in biases if len(ids) > 1
        ]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores + self.single_id_bias
        for beginning, last, bias in self.sequence_biases:
            if len(beginning) <= ids.shape[1]:
                scores[:, last] += bias * (ids[:, -len(beginning) :] == beginning).all(-1)
        return scores


class PrefixConstrainedProcessor:
    """Allows only the ids that the caller's function returns (`prefix_allowed_tokens_fn`).

    Args:
        allowed_tokens_fn: called with the index of the prompt and the ids (T,) so far.
        rows_per_prompt: rows of one prompt.
    """

    def __init__(self, allowed_tokens_fn: PrefixAllowedTokensFn, rows_per_prompt: int) -> None:
        self.allowed_tokens_fn, self.rows_per_prompt = allowed_tokens_fn, rows_per_prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -torch.inf)
        for row, so_far in enumerate(ids):
            allowed_ids = list(self.allowed_tokens_fn(row // self.rows_per_prompt, so_far))
            if not allowed_ids:
                raise BadSetting(
                    f"prefix_allowed_tokens_fn allows no id in prompt {row // self.rows_per_prompt} after "
                    f"{so_far.tolist()[-5:]}: return at least one"
                )
            mask[row, allowed_ids] = 0
        masked_scores = scores + mask
        # Where other settings forbid all allowed ids in every beam, the function has priority.
        has_no_allowed_id = (
            masked_scores.amax(-1)
            .isneginf()
            .view(-1, self.rows_per_prompt)
            .all(-1)
            .repeat_interleave(self.rows_per_prompt)
        )
        return torch.where(has_no_allowed_id[:, None], mask, masked_scores)


class ExponentialDecayLengthPenalty:
    """After a length, raises the scores of the stop ids by a factor with each further id.

    Args:
        start_length: T after which it has an effect.
        stop_ids: the stop ids.
    """

    def __init__(self, start_length: int, factor: float, stop_ids: Sequence[int]) -> None:
        self.start_length, self.factor, self.stop_ids = start_length, factor, list(stop_ids)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        num_ids_past_start = ids.shape[1] - self.start_length
        if num_ids_past_start <= 0:
            return scores
        stop_scores = scores[:, self.stop_ids]
        increase = stop_scores.abs() * (self.factor**num_ids_past_start - 1)
        scores = scores.clone()
        scores[:, self.stop_ids] = stop_scores + increase.masked_fill(~stop_scores.isfinite(), 0.0)
        return scores


class ClassifierFreeGuidance:
    """Moves scores away from those after another prompt: negative + scale * (scores - negative) (arXiv 2306.17806).

    Args:
        scale: 1 has no effect.
        negative_runner: the model with the other prompts.
        prompt_length: T at which answers begin.
    """

    def __init__(self, scale: float, negative_runner: GenerationRunner, prompt_length: int) -> None:
        self.scale, self.negative_runner, self.prompt_length = scale, negative_runner, prompt_length

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        runner, answers = self.negative_runner, ids[:, self.prompt_length :]
        if answers.shape[1] == 0:
            logits = runner.prefill()
        else:
            logits = runner.decode_step(torch.cat((runner.prompt_ids, answers), dim=1))
        negative_scores = logits.log_softmax(-1)
        return self.scale * (scores.log_softmax(-1) - negative_scores) + negative_scores
