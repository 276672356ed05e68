"""Answers while they grow: an answer that is collected, a stream of its text."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from idefics.engine.handle import Handle
from idefics.errors import IdeficsError
from idefics.messages import Answer, Delta, Timings
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.guides import BannedGuide, FormGuide, Shape
from idefics.processing.rule_guide import RuleGuide

if TYPE_CHECKING:
    from idefics.pipeline.asking import Asking


class Growing:
    """One answer while it is generated: the engine's thread writes it, the caller reads it.

    Args:
        asking: what was asked for.
        guide: of an answer that is not free.
    """

    def __init__(self, asking: Asking, guide: FormGuide | BannedGuide | RuleGuide | None) -> None:
        self.start, self.began = asking.start, asking.began
        self.guide, limits = guide, asking.limits
        keeps_blank = not limits.is_spaced if isinstance(limits, Shape) else asking.continues
        self.detokenizer = Detokenizer(
            asking.tokenizer,
            asking.stops,
            keeps_blank=keeps_blank or bool(asking.start),
            hidden=asking.hidden,
        )
        self.prepared = self.last = time.perf_counter()
        self.first: float | None = None
        self.lengths: list[int] = []  # of the text, after each token
        self.is_abandoned = False  # nobody will read it: the next token is the last
        self.handle: Handle

    def push(self, token: int) -> bool:
        """Takes the next token; whether a stop string ends the answer with it, or its form."""
        self.last = time.perf_counter()
        self.detokenizer.push(token)
        if self.first is None:
            self.first = self.last
        self.lengths.append(len(self.start) + len(self.detokenizer.text))
        is_over = self.guide is not None and self.guide.is_over
        return is_over or self.detokenizer.stopped or self.is_abandoned

    @property
    def text(self) -> str:
        """What is certain of it."""
        return self.start + self.detokenizer.text

    def deltas(self) -> Generator[Delta]:
        """The answer as it comes. Whoever leaves early cancels the rest, and has the answer up to there."""
        with self.handing_on() as shown:
            for _ in self.handle:
                if delta := shown.next():
                    yield delta
        if delta := shown.rest():
            yield delta

    @contextmanager
    def handing_on(self) -> Generator[Shown]:
        """What is done within hands the answer on. However it ends, the handle does; left early, it is cut there."""
        shown = Shown(self)
        try:
            yield shown
        except (GeneratorExit, asyncio.CancelledError):
            self.cut(shown.length)
            raise
        finally:
            self.handle.cancel()

    def answer(self) -> Answer:
        """The answer, or what there is of it."""
        if self.handle.done:
            self.detokenizer.finish()
        handle, request = self.handle, self.handle.request
        first = self.last if self.first is None else self.first
        return Answer(
            text=self.start + self.detokenizer.text,
            tokens=tuple(handle.ids),
            finish=handle.finish_reason or "cancelled",
            usage=handle.usage,
            timings=Timings(self.prepared - self.began, first - self.began, self.last - self.began),
            logprobs=tuple(handle.logprobs) if request.sampling.logprobs else None,
            top_logprobs=tuple(handle.top_logprobs) if request.sampling.top_logprobs else None,
            notes=request.prompt.notes,
        )

    def cut(self, length: int) -> None:
        """Forgets what came after the text's first `length` characters."""
        self.handle.cancel()
        tokens = bisect_right(self.lengths, length)
        if tokens < len(self.handle.ids):  # it may have been done already
            self.handle.finish("cancelled")
        for of_each in (self.handle.ids, self.handle.logprobs, self.handle.top_logprobs):
            del of_each[tokens:]
        self.detokenizer.cut(length - len(self.start))


class Shown:
    """How much of a growing answer has been handed on.

    Attributes:
        length: characters.
        tokens: ids.
    """

    def __init__(self, growing: Growing) -> None:
        self.growing = growing
        self.length = self.tokens = self._count = 0

    def next(self) -> Delta | None:
        """What is new with one id more, once there is text."""
        self._count += 1
        length = self.growing.lengths[self._count - 1]
        return self._delta(self.growing.text[:length], self._count) if length > self.length else None

    def rest(self) -> Delta | None:
        """What has not been handed on of an answer that has ended."""
        answer = self.growing.answer()
        if len(answer.text) == self.length and len(answer.tokens) == self.tokens:
            return None
        return self._delta(answer.text, len(answer.tokens))

    def _delta(self, text: str, tokens: int) -> Delta:
        handle, new = self.growing.handle, slice(self.tokens, tokens)
        sampling = handle.request.sampling
        delta = Delta(
            text[self.length :],
            tuple(handle.ids[new]),
            tuple(handle.logprobs[new]) if sampling.logprobs else None,
            tuple(handle.top_logprobs[new]) if sampling.top_logprobs else None,
        )
        self.length, self.tokens = len(text), tokens
        return delta


class Stream:
    """An answer as it comes: iterate it for pieces of text; afterwards `answer` holds the whole.

    Leaving the loop early cancels the rest; `answer` is then what came until there. In asyncio, `async for delta in
    stream.deltas()` gives text, ids and log-probabilities as they come.
    """

    def __init__(self, growing: Growing) -> None:
        self._growing, self._deltas = growing, growing.deltas()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for delta in self._deltas:
            if delta.text:
                return delta.text
        raise StopIteration

    def __del__(self) -> None:
        self._growing.is_abandoned = True  # and no lock: this may run anywhere

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer as it comes, for asyncio; once, and instead of iterating the stream.

        A cancelled task cancels the rest of the answer. Whoever leaves the loop calls `close`, since Python closes a
        generator of this kind late.

        Raises:
            IdeficsError: what went wrong with the request, after what came until there.
        """
        with self._growing.handing_on() as shown:
            async for _ in self._growing.handle:
                if delta := shown.next():
                    yield delta
        if delta := shown.rest():
            yield delta

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer here, waiting or running; its pages are free after the step. Never waits for a step."""
        self._deltas.close()
        self._growing.handle.cancel()

    def cancel(self) -> None:
        """Ends the answer, from any thread: whoever iterates it gets what has come, and then the end."""
        self._growing.handle.cancel()

    @property
    def answer(self) -> Answer:
        """The answer so far; complete once the stream has ended."""
        return self._growing.answer()


Reply = Answer | IdeficsError | list[Answer] | list[Answer | IdeficsError] | Stream
