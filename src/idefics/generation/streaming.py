"""Answers while they grow: an answer that is collected, a stream of its text."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from idefics.engine.handle import RequestHandle
from idefics.errors import IdeficsError
from idefics.messages import Answer, Delta, Timings
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.generation_config_constraint import GenerationConfigConstraint
from idefics.processing.structured_output import BannedStringsConstraint, CompiledGrammar, GrammarConstraint

if TYPE_CHECKING:
    from idefics.generation.answer_generator import AnswerGenerator


class Generation:
    """One answer while it is generated: the engine's thread writes it, the caller reads it.

    Args:
        generator: what was asked for.
        constraint: of an answer that is not free.
    """

    def __init__(
        self,
        generator: AnswerGenerator,
        constraint: GrammarConstraint | BannedStringsConstraint | GenerationConfigConstraint | None,
    ) -> None:
        self.text_prefix, self.start_time = generator.text_prefix, generator.start_time
        self.constraint, compiled_constraint = constraint, generator.compiled_constraint
        keeps_leading_space = (
            not compiled_constraint.allows_leading_space
            if isinstance(compiled_constraint, CompiledGrammar)
            else generator.is_continuation
        )
        self.detokenizer = Detokenizer(
            generator.tokenizer,
            generator.stop_strings,
            keep_leading_space=keeps_leading_space or bool(generator.text_prefix),
            hidden_ids=generator.hidden_ids,
        )
        self.prepared_time = self.last_token_time = time.perf_counter()
        self.first_token_time: float | None = None
        self.text_lengths: list[int] = []  # of the text, after each token
        self.is_abandoned = False  # nobody will read it: the next token is the last
        self.handle: RequestHandle

    def on_token(self, token_id: int) -> bool:
        """Takes the next token; whether a stop string ends the answer with it, or its form."""
        self.last_token_time = time.perf_counter()
        self.detokenizer.push(token_id)
        if self.first_token_time is None:
            self.first_token_time = self.last_token_time
        self.text_lengths.append(len(self.text_prefix) + len(self.detokenizer.text))
        is_over = self.constraint is not None and self.constraint.is_finished
        return is_over or self.detokenizer.is_stopped or self.is_abandoned

    @property
    def text(self) -> str:
        """What is certain of it."""
        return self.text_prefix + self.detokenizer.text

    def deltas(self) -> Generator[Delta]:
        """The answer as it comes. Whoever leaves early cancels the rest, and has the answer up to there."""
        with self.open_cursor() as cursor:
            for _ in self.handle:
                if delta := cursor.next_delta():
                    yield delta
        if delta := cursor.final_delta():
            yield delta

    @contextmanager
    def open_cursor(self) -> Generator[DeltaCursor]:
        """What is done within hands the answer on. However it ends, the handle does; left early, it is cut there."""
        cursor = DeltaCursor(self)
        try:
            yield cursor
        except (GeneratorExit, asyncio.CancelledError):
            self.truncate(cursor.num_chars)
            raise
        finally:
            self.handle.cancel()

    def build_answer(self) -> Answer:
        """The answer, or what there is of it."""
        if self.handle.is_done:
            self.detokenizer.finish()
        handle, request = self.handle, self.handle.request
        first_token_time = self.last_token_time if self.first_token_time is None else self.first_token_time
        return Answer(
            text=self.text_prefix + self.detokenizer.text,
            tokens=tuple(handle.ids),
            finish=handle.finish_reason or "cancelled",
            usage=handle.usage,
            timings=Timings(
                self.prepared_time - self.start_time,
                first_token_time - self.start_time,
                self.last_token_time - self.start_time,
            ),
            logprobs=tuple(handle.logprobs) if request.sampling.logprobs else None,
            top_logprobs=tuple(handle.top_logprobs) if request.sampling.top_logprobs else None,
            notes=request.prompt.notes,
        )

    def truncate(self, num_chars: int) -> None:
        """Forgets what came after the text's first `num_chars` characters."""
        self.handle.cancel()
        num_tokens = bisect_right(self.text_lengths, num_chars)
        if num_tokens < len(self.handle.ids):  # it may have been done already
            self.handle.finish("cancelled")
        for per_token_values in (self.handle.ids, self.handle.logprobs, self.handle.top_logprobs):
            del per_token_values[num_tokens:]
        self.detokenizer.truncate(num_chars - len(self.text_prefix))


class DeltaCursor:
    """How much of a growing answer has been handed on.

    Attributes:
        num_chars: characters.
        num_tokens: ids.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.num_chars = self.num_tokens = self._num_received = 0

    def next_delta(self) -> Delta | None:
        """What is new with one id more, once there is text."""
        self._num_received += 1
        num_chars = self.generation.text_lengths[self._num_received - 1]
        return (
            self._make_delta(self.generation.text[:num_chars], self._num_received)
            if num_chars > self.num_chars
            else None
        )

    def final_delta(self) -> Delta | None:
        """What has not been handed on of an answer that has ended."""
        answer = self.generation.build_answer()
        if len(answer.text) == self.num_chars and len(answer.tokens) == self.num_tokens:
            return None
        return self._make_delta(answer.text, len(answer.tokens))

    def _make_delta(self, text: str, num_tokens: int) -> Delta:
        handle, new_tokens = self.generation.handle, slice(self.num_tokens, num_tokens)
        sampling = handle.request.sampling
        delta = Delta(
            text[self.num_chars :],
            tuple(handle.ids[new_tokens]),
            tuple(handle.logprobs[new_tokens]) if sampling.logprobs else None,
            tuple(handle.top_logprobs[new_tokens]) if sampling.top_logprobs else None,
        )
        self.num_chars, self.num_tokens = len(text), num_tokens
        return delta


class Stream:
    """An answer as it comes: iterate it for pieces of text; afterwards `answer` holds the whole.

    Leaving the loop early cancels the rest; `answer` is then what came until there. In asyncio, `async for delta in
    stream.deltas()` gives text, ids and log-probabilities as they come.
    """

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
        self._generation.is_abandoned = True  # and no lock: this may run anywhere

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer as it comes, for asyncio; once, and instead of iterating the stream.

        A cancelled task cancels the rest of the answer. Whoever leaves the loop calls `close`, since Python closes a
        generator of this kind late.

        Raises:
            IdeficsError: what went wrong with the request, after what came until there.
        """
        with self._generation.open_cursor() as cursor:
            async for _ in self._generation.handle:
                if delta := cursor.next_delta():
                    yield delta
        if delta := cursor.final_delta():
            yield delta

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer here, waiting or running; its pages are free after the step. Never waits for a step."""
        self._deltas.close()
        self._generation.handle.cancel()

    def cancel(self) -> None:
        """Ends the answer, from any thread: whoever iterates it gets what has come, and then the end."""
        self._generation.handle.cancel()

    @property
    def answer(self) -> Answer:
        """The answer so far; complete once the stream has ended."""
        return self._generation.build_answer()


GenerationResult = Answer | IdeficsError | list[Answer] | list[Answer | IdeficsError] | Stream
