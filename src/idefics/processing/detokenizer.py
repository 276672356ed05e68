"""Ids to text while they are generated: never half a character, never part of a stop string.

Knows one answer's text so far; does not know why it is generated.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from idefics.errors import BadSetting
from idefics.processing.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer, piece by piece.

    One space at the very beginning of the answer is dropped, whatever the tokenizer: it belongs to the way a
    first word is spelled (" It" after "Assistant:"), not to the answer; `keeps_blank` keeps it. Hidden tokens are
    left out. The text ends before the first stop string: the one that is complete first.

    Attributes:
        text: what has been returned so far.
        stopped: whether a stop string has been met; what is pushed then is ignored.

    Args:
        hidden: ids that are left out; None: the control tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        keeps_blank: bool = False,
        hidden: Collection[int] | None = None,
    ) -> None:
        if not all(stop):
            raise BadSetting("a stop string is empty: give at least one character")
        self._tokenizer, self._stop, self._hidden = tokenizer, tuple(stop), hidden
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips = not keeps_blank  # until there is text
        self._held = ""  # text that may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """The text that became certain with this token; often "" or more than one token's."""
        return self._advance(self._characters.decode(self._tokenizer.decode_bytes([id], hidden=self._hidden)))

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        text = self._advance(self._characters.decode(b"", final=True))
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        self.text += rest
        return text + rest

    def cut(self, length: int) -> None:
        """Ends the text after its first `length` characters: nobody wants the rest."""
        self.text, self._held, self.stopped = self.text[:length], "", True

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._strips:
            text, self._strips = text.removeprefix(" "), False
        self._held += text
        starts = [(self._held.find(stop), len(stop)) for stop in self._stop if stop in self._held]
        if starts:
            self.stopped = True
            _, certain = min((start + length, start) for start, length in starts)
        else:
            certain = len(self._held) - self._uncertain()
        text, self._held = self._held[:certain], self._held[certain:]
        self.text += text
        return text

    def _uncertain(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
