"""When `generate` ends an answer: the caller's criteria, and those that settings ask for. R rows, T ids so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics.compat.streamers import TokenDecoder

StepScores = tuple[Tensor, ...] | None
StoppingCriterionFn = Callable[
    [Tensor, StepScores], Tensor | bool
]  # (R, T) ids, scores of the steps so far -> (R,)


class StoppingCriteria:
    """Says which answers end here. Inherit from it, or write any function with these arguments."""

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor | bool:
        """(R, T) ids so far, the scores if they are asked for -> (R,), or one bool for all rows."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(input_ids, scores)")


class MaxLengthCriteria(StoppingCriteria):
    """Ends every answer at so many ids, the prompt's among them."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: StepScores) -> bool:
        return input_ids.shape[1] >= self.max_length


class MaxTimeCriteria(StoppingCriteria):
    """Ends every answer when so many seconds have passed since `initial_timestamp`, by default since now."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: StepScores) -> bool:
        return time.time() - self.initial_timestamp > self.max_time


class EosTokenCriteria(StoppingCriteria):
    """Ends an answer after one of these ids."""

    def __init__(self, eos_token_id: int | list[int]) -> None:
        self.stop_ids = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        return torch.isin(input_ids[:, -1], self.stop_ids.to(input_ids.device))


class StoppingCriteriaList(list[StoppingCriterionFn]):
    """Ends an answer where one of them does."""

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        """-> (R,) bool."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            ended = ended | criterion(input_ids, scores)
        return ended


class StopStringCriteria(StoppingCriteria):
    """Ends an answer at the id that completes one of these texts; the answer keeps them.

    Texts are looked for in all that has been decoded, special tokens included.

    Args:
        tokenizer: decodes ids.
        stop_strings: the texts.
    """

    def __init__(self, tokenizer: TokenDecoder, stop_strings: str | Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        # An id is a byte of a text at least; a few more, so that the first of them is cut by nothing.
        self.max_checked_ids = max(len(text.encode()) for text in self.stop_strings) + 8

    def __call__(self, input_ids: Tensor, scores: StepScores) -> Tensor:
        return torch.tensor([self._ends_with_stop_string(row) for row in input_ids], device=input_ids.device)

    def _ends_with_stop_string(self, row: Tensor) -> bool:
        """Whether one of them ends in what the last id adds to the text."""
        ids = row[-self.max_checked_ids :].tolist()
        text, previous_text = self._decode(ids), self._decode(ids[:-1])
        pairs = zip(text, previous_text, strict=False)  # half a character is decoded as another one
        num_previous_characters = next(
            (place for place, (one, other) in enumerate(pairs) if one != other), len(previous_text)
        )
        stop_ends = (text.rfind(stop) + len(stop) for stop in self.stop_strings if stop in text)
        return any(end > num_previous_characters for end in stop_ends)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
