"""An answer while it is generated: `Generation`, written by the engine and read by one caller; the public `Stream`."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Self

from idefics.engine.handle import RequestHandle
from idefics.errors import IdeficsError
from idefics.messages import Answer, Delta, Timings
from idefics.processing.checkpoint_generation_config import AnswerConstraint
from idefics.processing.detokenizer import Detokenizer


class Generation:
    """One answer while it is generated: the engine's thread appends tokens, one caller reads the text.

    Args:
        detokenizer: turns the token ids into text and finds stop strings.
        constraint: the constraint on the answer's tokens, which may end it; None: the answer is free.
        text_prefix: text that the answer's text begins with, before the generated text.
        start_time: when the call began, by `time.perf_counter`.

    Attributes:
        handle: the engine's handle of the request; set as soon as the request is submitted.
        is_abandoned: the answer will not be read, so that the engine ends it with the next token.
    """

    handle: RequestHandle

    def __init__(
        self,
        detokenizer: Detokenizer,
        constraint: AnswerConstraint | None,
        *,
        text_prefix: str,
        start_time: float,
    ) -> None:
        self.detokenizer, self._constraint = detokenizer, constraint
        self._text_prefix, self._start_time = text_prefix, start_time
        self._submit_time = self._last_token_time = time.perf_counter()
        self._first_token_time: float | None = None
        self._text_lengths: list[int] = []  # length of the text after each token
        self._num_tokens_received = 0  # tokens that the reader was notified of
        self._num_tokens_read = self._num_chars_read = 0  # contained in the deltas returned so far
        self.is_abandoned = False

    def on_token(self, token_id: int) -> bool:
        """Takes the next token; called by the engine's thread (see `Request.on_token`).

        Returns:
            Whether the answer ends with this token: by a stop string, by its constraint, or because it is abandoned.
        """
        self._last_token_time = time.perf_counter()
        self.detokenizer.push_token(token_id)
        if self._first_token_time is None:
            self._first_token_time = self._last_token_time
        self._text_lengths.append(len(self._text_prefix) + len(self.detokenizer.text))
        is_finished = self._constraint is not None and self._constraint.is_finished
        return is_finished or self.detokenizer.is_stopped or self.is_abandoned

    @property
    def _text(self) -> str:
        """All text of the answer so far, the caller's beginning of it included."""
        return self._text_prefix + self.detokenizer.text

    def result(self) -> Answer:
        """Waits until the answer is complete and returns it.

        Raises:
            IdeficsError: the request failed.
        """
        self.handle.result()
        return self.build_answer()

    def build_answer(self) -> Answer:
        """Makes an `Answer` of what has been generated so far; it is complete once the handle is done."""
        handle, sampling = self.handle, self.handle.request.sampling
        if handle.is_done:
            self.detokenizer.finish()
        first_token_time = self._last_token_time if self._first_token_time is None else self._first_token_time
        return Answer(
            text=self._text,
            tokens=tuple(handle.ids),
            finish=handle.finish_reason or "cancelled",
            usage=handle.usage,
            timings=Timings(
                self._submit_time - self._start_time,
                first_token_time - self._start_time,
                self._last_token_time - self._start_time,
            ),
            logprobs=tuple(handle.logprobs) if sampling.logprobs else None,
            top_logprobs=tuple(handle.top_logprobs) if sampling.top_logprobs else None,
            notes=handle.request.prompt.notes,
        )

    def deltas(self) -> Generator[Delta]:
        """Yields the parts of the answer as they are generated. Closing the generator early cancels the rest."""
        with self.cancel_on_exit():
            for _ in self.handle:
                if delta := self.next_delta():
                    yield delta
        if delta := self.final_delta():
            yield delta

    @contextmanager
    def cancel_on_exit(self) -> Generator[None]:
        """Context in which one caller reads the answer: at its end the request is cancelled, if it is not done.

        If the block is left early, the text that was not read is dropped.
        """
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            self._cancel_and_drop_unread()
            raise
        finally:
            self.handle.cancel()

    def next_delta(self) -> Delta | None:
        """The text and tokens that are new; None while no new text is certain. Call it once for each token."""
        self._num_tokens_received += 1
        num_chars = self._text_lengths[self._num_tokens_received - 1]
        if num_chars == self._num_chars_read:
            return None
        return self._take_unread_delta(self._text[:num_chars], self._num_tokens_received)

    def final_delta(self) -> Delta | None:
        """The text and tokens that no delta contained; None if there are none. Call it after the last token."""
        answer = self.build_answer()
        if len(answer.text) == self._num_chars_read and len(answer.tokens) == self._num_tokens_read:
            return None
        return self._take_unread_delta(answer.text, len(answer.tokens))

    def _take_unread_delta(self, text: str, num_tokens: int) -> Delta:
        """The unread part of the answer's first `num_tokens` tokens, whose whole text is `text`; marks it as read."""
        handle, sampling = self.handle, self.handle.request.sampling
        new_tokens = slice(self._num_tokens_read, num_tokens)
        delta = Delta(
            text[self._num_chars_read :],
            tuple(handle.ids[new_tokens]),
            tuple(handle.logprobs[new_tokens]) if sampling.logprobs else None,
            tuple(handle.top_logprobs[new_tokens]) if sampling.top_logprobs else None,
        )
        self._num_chars_read, self._num_tokens_read = len(text), num_tokens
        return delta

    def _cancel_and_drop_unread(self) -> None:
        """Cancels the request and removes the text and tokens that no delta contained."""
        handle = self.handle
        handle.cancel()
        num_tokens = bisect_right(self._text_lengths, self._num_chars_read)
        if num_tokens < len(handle.ids):  # it may have been done already
            handle.finish_reason = "cancelled"
        for per_token_values in (handle.ids, handle.logprobs, handle.top_logprobs):
            del per_token_values[num_tokens:]
        self.detokenizer.truncate(self._num_chars_read - len(self._text_prefix))


class Stream:
    """An answer that is read while it is generated: iterating gives pieces of text, `answer` the answer so far.

    Leaving the loop early, or `close`, cancels the rest; `answer` then holds what was read. A stream is read once,
    either by iterating it or, in asyncio, by `deltas`. It is a context manager that closes itself.

    Examples:
        >>> with vlm.ask("photo.jpg", "What is this?", stream=True) as stream:
        ...     for text in stream:
        ...         print(text, end="")
        >>> print(stream.answer.finish)
    """

    # A separate object, since the engine keeps the `Generation` alive: deleting the last reference to a stream ends its
    # answer.

    def __init__(self, generation: Generation) -> None:
        self._generation, self._deltas = generation, generation.deltas()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for delta in self._deltas:
            if delta.text:
                return delta.text
        raise StopIteration

    def __del__(self) -> None:
        self._generation.is_abandoned = True  # takes no lock: any thread may run this, at any time

    async def deltas(self) -> AsyncGenerator[Delta]:
        """Iterates the answer in asyncio, with token ids and log-probabilities; instead of iterating the stream.

        Cancelling the task cancels the rest of the answer. After leaving the loop early call `close`, since Python
        closes an asynchronous generator late.

        Yields:
            The parts of the answer as they are generated. Joined, they are the answer.

        Raises:
            IdeficsError: the request failed; raised after the parts that were generated before.

        Examples:
            >>> async for delta in vlm.submit(prompt).deltas():
            ...     print(delta.text, delta.tokens)
        """
        generation = self._generation
        with generation.cancel_on_exit():
            async for _ in generation.handle:
                if delta := generation.next_delta():
                    yield delta
        if delta := generation.final_delta():
            yield delta

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer and drops what was not read, without waiting; its memory is free after the current step."""
        self._deltas.close()
        self._generation.handle.cancel()

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, when the answer is complete, failed or cancelled, in any thread; it must not block."""
        self._generation.handle.call_when_done(callback)

    def cancel(self) -> None:
        """Ends the answer, from any thread: a reader gets what was generated so far and then the end."""
        self._generation.handle.cancel()

    @property
    def answer(self) -> Answer:
        """The answer so far; it is complete once the stream has ended."""
        return self._generation.build_answer()


GenerationResult = Answer | IdeficsError | list[Answer] | list[Answer | IdeficsError] | Stream
