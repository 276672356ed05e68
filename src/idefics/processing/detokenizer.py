"""Incremental detokenization: text is returned only in whole characters and never contains part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from idefics.errors import BadSetting
from idefics.processing.tokenizer import Tokenizer


class Detokenizer:
    """Decodes the tokens of one answer into text as they are generated.

    One space at the very beginning of the answer is dropped, as it belongs to the spelling of the first word (" It"
    after "Assistant:"). The text ends before the stop string that is complete first.

    Attributes:
        text: the text returned so far.
        is_stopped: whether a stop string has occurred; later tokens are ignored.

    Args:
        stop_strings: texts that end the answer.
        keep_leading_space: whether the space at the beginning is kept.
        hidden_ids: ids that are left out; None: the control tokens.

    Raises:
        BadSetting: a stop string is empty.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str] = (),
        *,
        keep_leading_space: bool = False,
        hidden_ids: Collection[int] | None = None,
    ) -> None:
        if not all(stop_strings):
            raise BadSetting("a stop string is empty: give at least one character")
        self._tokenizer, self._stop_strings, self._hidden_ids = tokenizer, tuple(stop_strings), hidden_ids
        self._utf8_decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips_leading_space = not keep_leading_space  # until there is text
        self._pending_text = ""  # text that may be the beginning of a stop string
        self.text = ""
        self.is_stopped = False

    def push_token(self, id: int) -> str:
        """Takes the next token; returns the new text that later tokens cannot change, "" if there is none yet."""
        return self._append_text(
            self._utf8_decoder.decode(self._tokenizer.decode_bytes([id], hidden_ids=self._hidden_ids))
        )

    def finish(self) -> str:
        """Returns the text that `push_token` has held back; called after the last token."""
        text = self._append_text(self._utf8_decoder.decode(b"", final=True))
        if self.is_stopped:
            return text
        rest, self._pending_text = self._pending_text, ""
        self.text += rest
        return text + rest

    def truncate(self, length: int) -> None:
        """Cuts the text to its first `length` characters; later tokens are ignored."""
        self.text, self._pending_text, self.is_stopped = self.text[:length], "", True

    def _append_text(self, text: str) -> str:
        """Appends decoded text and returns the new text that can no longer change."""
        if self.is_stopped or not text:
            return ""
        if self._strips_leading_space:
            text, self._strips_leading_space = text.removeprefix(" "), False
        self._pending_text += text
        starts = [
            (self._pending_text.find(stop), len(stop))
            for stop in self._stop_strings
            if stop in self._pending_text
        ]
        if starts:
            self.is_stopped = True
            _, num_certain = min((start + length, start) for start, length in starts)
        else:
            num_certain = len(self._pending_text) - self._count_uncertain_characters()
        text, self._pending_text = self._pending_text[:num_certain], self._pending_text[num_certain:]
        self.text += text
        return text

    def _count_uncertain_characters(self) -> int:
        """How many characters at the end of the pending text may be the beginning of a stop string."""
        longest = max(map(len, self._stop_strings), default=1) - 1
        for length in range(min(longest, len(self._pending_text)), 0, -1):
            if any(stop.startswith(self._pending_text[-length:]) for stop in self._stop_strings):
                return length
        return 0
