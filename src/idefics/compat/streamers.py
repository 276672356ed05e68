"""Streamers: text while it is generated, printed or passed to another thread, word by word."""

from __future__ import annotations

import sys
from queue import Queue
from typing import Any, Protocol, Self

from torch import Tensor

from idefics.errors import BadSetting

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
