"""Criteria by which `generate` ends an answer. R rows, T ids so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from os.path import commonprefix

import torch
from torch import Tensor

from idefics.compat.streamers import TokenizerLike

StepScores = tuple[Tensor, ...] | None
# (R, T) ids, scores of the steps so far -> (R,)
StoppingCriterionFn = Callable[[Tensor, StepScores], Tensor | bool]


class StoppingCriteria:
    """Says which answers end: a base class for the caller's own; any function will do as well."""

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor | bool:
        """Ids (R, T), and the scores if `output_scores` is set -> (R,) bool, or one bool for all rows."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(input_ids, scores)")


class MaxLengthCriteria(StoppingCriteria):
    """Ends every answer when it has `max_length` ids, those of the prompt included."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: StepScores) -> bool:
        return input_ids.shape[1] >= self.max_length


class MaxTimeCriteria(StoppingCriteria):
    """Ends every answer `max_time` seconds after `initial_timestamp` (of `time.time`); None: after the construction."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: StepScores) -> bool:
        return time.time() - self.initial_timestamp > self.max_time


class EosTokenCriteria(StoppingCriteria):
    """Ends an answer after `eos_token_id`, or after one of several such ids."""

    def __init__(self, eos_token_id: int | list[int]) -> None:
        self.stop_ids = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        return torch.isin(input_ids[:, -1], self.stop_ids.to(input_ids.device))


class StoppingCriteriaList(list[StoppingCriterionFn]):
    """Criteria of which any one ends an answer."""

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        """Ids (R, T) and scores -> (R,) bool, which answers end."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            ended = ended | criterion(input_ids, scores)
        return ended


class StopStringCriteria(StoppingCriteria):
    """Ends an answer at the id that completes one of the stop strings, which are part of the answer.

    Ids are decoded with special tokens.
    """

    def __init__(self, tokenizer: TokenizerLike, stop_strings: str | Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        # An id is at least a byte of the text; a few more ids, so that the first characters are decoded whole.
        self.max_checked_ids = max(len(text.encode()) for text in self.stop_strings) + 8

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        return torch.tensor([self._ends_with_stop_string(row) for row in input_ids], device=input_ids.device)

    def _ends_with_stop_string(self, row: Tensor) -> bool:
        """Whether a stop string ends in the characters that the last id adds."""
        ids = row[-self.max_checked_ids :].tolist()
        text = self._decode(ids)
        # An incomplete character is decoded as another one.
        num_previous_characters = len(commonprefix((text, self._decode(ids[:-1]))))  # noqa: RUF071 (of texts)
        stop_ends = (text.rfind(stop) + len(stop) for stop in self.stop_strings if stop in text)
        return any(end > num_previous_characters for end in stop_ends)

    def _decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
