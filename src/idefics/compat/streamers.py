"""Text while it is generated: printed, or handed to another thread. Words appear when they are whole."""

from __future__ import annotations

import sys
from queue import Queue
from typing import Any, Protocol, Self

from torch import Tensor

from idefics.errors import BadSetting

# Blocks of Unicode whose characters are words of their own: text in them has no spaces to wait for.
IDEOGRAPH_RANGES = (
    range(0x3400, 0x4DC0),  # CJK Unified Ideographs Extension A
    range(0x4E00, 0xA000),  # CJK Unified Ideographs
    range(0xF900, 0xFB00),  # CJK Compatibility Ideographs
    range(0x20000, 0x2A6E0),  # Extension B
    range(0x2A700, 0x2CEB0),  # Extensions C, D and E
    range(0x2F800, 0x2FA20),  # Compatibility Supplement
)


class TokenDecoder(Protocol):
    """A tokenizer, or a processor that has one."""

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Ids -> text."""
        ...


class BaseStreamer:
    """What `generate` tells while it runs."""

    def put(self, value: Tensor) -> None:
        """First (1, T) ids of the prompt, then (1,) each id as it is chosen."""
        raise NotImplementedError(f"{type(self).__name__} has no put(value)")

    def end(self) -> None:
        """No more comes: all is generated, or an error ended it."""
        raise NotImplementedError(f"{type(self).__name__} has no end()")


class TextStreamer(BaseStreamer):
    """Prints text to standard output as soon as words are whole; inherit and change `on_finalized_text` for more.

    A word is whole when a space or a line end follows it; an ideograph is one.

    Args:
        tokenizer: decodes ids.
        skip_prompt: leave the prompt out.
        decode_kwargs: more arguments of its `decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: TokenDecoder, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer, self.skip_prompt, self.decode_kwargs = tokenizer, skip_prompt, decode_kwargs
        self._expects_prompt = True
        self._line_ids: list[int] = []  # of this line
        self._num_printed_characters = 0  # how many characters of their text

    def put(self, value: Tensor) -> None:
        """Shows what has become whole. Raises BadSetting where there is more than one answer."""
        rows = len(value) if value.dim() > 1 or not self._expects_prompt else 1
        if rows > 1:
            raise BadSetting(
                f"a stream is of one answer, and here are {rows}: give one prompt, and ask for one"
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
        """Shows the rest, and a line end. The streamer may then be used again."""
        rest = self._decode_line()[self._num_printed_characters :]
        self._expects_prompt, self._line_ids, self._num_printed_characters = True, [], 0
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each new piece of text, perhaps an empty one; the last time with `stream_end`."""
        sys.stdout.write(text + "\n" if stream_end else text)
        sys.stdout.flush()

    def _decode_line(self) -> str:
        return self.tokenizer.decode(self._line_ids, **self.decode_kwargs) if self._line_ids else ""


class TextIteratorStreamer(TextStreamer):
    """Hands text to another thread, which iterates over the streamer while `generate` runs in its own.

    The iteration ends when generation does: also by an error, whatever it was.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as in `TextStreamer`.
        timeout: seconds to wait for the next piece of text before `queue.Empty` is raised; None waits as long as
            it takes.
    """

    def __init__(
        self,
        tokenizer: TokenDecoder,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()  # None is the end

    def end(self) -> None:
        """Hands over the rest, and ends the iteration."""
        try:
            super().end()
        except BaseException:
            self.text_queue.put(None)
            raise

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands a piece over."""
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
