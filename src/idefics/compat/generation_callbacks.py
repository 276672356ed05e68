"""What callers give `generate`: stopping criteria; and streamers, which print or pass on text while it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from os.path import commonprefix
from queue import Queue
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from idefics.errors import BadSetting

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


# Blocks of Unicode whose characters are shown at once, as their text has no spaces.
IDEOGRAPH_RANGES = (
    range(0x3400, 0x4DC0),  # CJK Unified Ideographs Extension A
    range(0x4E00, 0xA000),  # CJK Unified Ideographs
    range(0xF900, 0xFB00),  # CJK Compatibility Ideographs
    range(0x20000, 0x2A6E0),  # Extension B
    range(0x2A700, 0x2CEB0),  # Extensions C, D and E
    range(0x2F800, 0x2FA20),  # Compatibility Supplement
)


class TokenizerLike(Protocol):
    """A tokenizer, or a processor with its `decode`."""

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Decodes a row of ids to text."""
        ...


class BaseStreamer:
    """What `generate` calls while it runs; the base class of streamers."""

    def put(self, value: Tensor) -> None:
        """Receives first the ids of the prompt (1, T), then each id (1,) as it is chosen."""
        raise NotImplementedError(f"{type(self).__name__} has no put(value)")

    def end(self) -> None:
        """Called when all is generated, or after an error."""
        raise NotImplementedError(f"{type(self).__name__} has no end()")


class TextStreamer(BaseStreamer):
    """Prints text to standard output, word by word; subclasses override `on_finalized_text`.

    A word is complete when a space or a line end follows it; an ideograph is complete at once.

    Args:
        tokenizer: decodes ids.
        skip_prompt: whether the prompt is left out.
        decode_kwargs: arguments of `decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: TokenizerLike, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer, self.skip_prompt, self.decode_kwargs = tokenizer, skip_prompt, decode_kwargs
        self._expects_prompt = True
        self._line_ids: list[int] = []  # ids of the current line
        self._num_printed_characters = 0  # of the text of this line

    def put(self, value: Tensor) -> None:
        """Shows the words that the ids complete. Raises BadSetting where there is more than one answer."""
        rows = len(value) if value.dim() > 1 or not self._expects_prompt else 1
        if rows > 1:
            raise BadSetting(
                f"a streamer takes one answer, and here are {rows}: give one prompt, and ask for one answer"
            )
        is_prompt, self._expects_prompt = self._expects_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self._line_ids += value.flatten().tolist()
        text = self._decode_line()
        is_line = text.endswith("\n")
        is_whole = is_line or (text != "" and any(ord(text[-1]) in block for block in IDEOGRAPH_RANGES))
        new = text[self._num_printed_characters : len(text) if is_whole else text.rfind(" ") + 1]
        self._num_printed_characters += len(new)
        if is_line:
            self._line_ids, self._num_printed_characters = [], 0
        self.on_finalized_text(new)

    def end(self) -> None:
        """Shows the rest and a line end. The streamer can then be used again."""
        rest = self._decode_line()[self._num_printed_characters :]
        self._expects_prompt, self._line_ids, self._num_printed_characters = True, [], 0
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each new piece of text, which may be empty; the last time with `stream_end`."""
        sys.stdout.write(text + "\n" if stream_end else text)
        sys.stdout.flush()

    def _decode_line(self) -> str:
        """The text of the ids since the last line end; "" if there are none."""
        return self.tokenizer.decode(self._line_ids, **self.decode_kwargs) if self._line_ids else ""


class TextIteratorStreamer(TextStreamer):
    """Passes text to another thread, which iterates over the streamer while `generate` runs in its own thread.

    The iteration ends when generation ends, also by an error.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as in `TextStreamer`.
        timeout: seconds to wait for the next piece of text before `queue.Empty` is raised; None: no limit.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()  # None is the end

    def end(self) -> None:
        """Passes the rest on, and ends the iteration."""
        try:
            super().end()
        except BaseException:
            self.text_queue.put(None)
            raise

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Puts a piece of text into the queue."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
