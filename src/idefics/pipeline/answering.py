"""Answers while they grow: options of a call, an answer that is collected, a stream of its text."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from idefics.config import Sampling
from idefics.engine.engine import Engine
from idefics.engine.handle import Handle
from idefics.engine.request import Request
from idefics.messages import Answer, Detail, Timings, Usage
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.tokenizer import Tokenizer
from idefics.prompt import Prompt


class Options(TypedDict, total=False):
    """What every call that generates takes: the fields of `Sampling`, stop strings, and those of `Look`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    num_beams: int
    seed: int | None
    logprobs: bool
    stop: str | Sequence[str]
    detail: Detail
    max_tiles: int | None


class Growing:
    """One answer while it is generated: the engine's thread writes it, the caller reads it.

    Args:
        start: the caller's words that its text begins with.
        began: when the caller asked.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], start: str, began: float) -> None:
        self.tokenizer, self.start, self.began = tokenizer, start, began
        self.detokenizer = Detokenizer(tokenizer, stops)
        self.prepared = self.last = time.perf_counter()
        self.first: float | None = None
        self.lengths: list[int] = []  # of the text, after each token
        self.is_abandoned = False  # nobody will read it: the next token is the last
        self.handle: Handle

    def push(self, token: int) -> bool:
        """Takes the next token; whether a stop string ends the answer with it."""
        self.last = time.perf_counter()
        self.detokenizer.push(token)
        if self.first is None:
            self.first = self.last
            if self.start and self.tokenizer.decode_bytes([token]).startswith(b" "):
                self.start += " "
        self.lengths.append(len(self.text))
        return self.detokenizer.stopped or self.is_abandoned

    @property
    def text(self) -> str:
        """What is certain of it."""
        return self.start + self.detokenizer.text

    def pieces(self) -> Generator[str]:
        """Its text as it comes. Whoever leaves early cancels the rest, and has the answer up to there."""
        shown = ""
        try:
            for count, _ in enumerate(self.handle):
                if piece := self.text[len(shown) : self.lengths[count]]:
                    shown += piece
                    yield piece
        except GeneratorExit:
            self._cut(len(shown))
            raise
        finally:
            self.handle.cancel()
        if rest := self.answer().text[len(shown) :]:
            yield rest

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
            usage=Usage(len(request.prompt), len(handle.ids), len(request.prompt.pictures)),
            timings=Timings(self.prepared - self.began, first - self.began, self.last - self.began),
            logprobs=tuple(handle.logprobs) if request.sampling.logprobs else None,
        )

    def _cut(self, length: int) -> None:
        """Forgets what came after the text's first `length` characters."""
        self.handle.cancel()
        tokens = bisect_right(self.lengths, length)
        if tokens < len(self.handle.ids):  # it may have been done already
            self.handle.finish("cancelled")
        self.handle.ids, self.handle.logprobs = self.handle.ids[:tokens], self.handle.logprobs[:tokens]
        self.detokenizer.cut(length - len(self.start))


class Stream:
    """An answer as it comes: iterate it for pieces of text; afterwards `answer` holds the whole.

    Leaving the loop early cancels the rest; `answer` is then what came until there.
    """

    def __init__(self, growing: Growing) -> None:
        self._growing, self._pieces = growing, growing.pieces()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __del__(self) -> None:
        self._growing.is_abandoned = True  # and no lock: this may run anywhere

    def close(self) -> None:
        """Ends the answer here."""
        self._pieces.close()
        self._growing.handle.cancel()

    @property
    def answer(self) -> Answer:
        """The answer so far; complete once the stream has ended."""
        return self._growing.answer()


Reply = Answer | list[Answer] | Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How prompts are answered, whatever they are.

    Attributes:
        stop_ids, banned_ids: as in `Request`.
        stops: strings that end an answer.
        start: the caller's words that each answer's text begins with.
        began: when the caller asked.
    """

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]
    stops: tuple[str, ...]
    start: str
    began: float

    def submit(self, prompt: Prompt) -> Growing:
        """Asks for one answer, and waits for room in the queue."""
        growing = Growing(self.tokenizer, self.stops, self.start, self.began)
        request = Request(prompt, self.sampling, self.stop_ids, self.banned_ids, growing.push)
        growing.handle = self.engine.submit(request, wait=True)
        return growing

    def answer(self, prompt: Prompt) -> Answer:
        """One answer."""
        growing = self.submit(prompt)
        growing.handle.result()
        return growing.answer()

    def answers(self, prompts: Iterator[Prompt]) -> list[Answer]:
        """Answers to many, which are asked for as they come; an error of one cancels the rest."""
        most = 2 * self.engine.config.batch_rows  # asked for at once: prompts hold pictures
        growing: deque[Growing] = deque()
        answers: list[Answer] = []
        try:
            for prompt in prompts:
                growing.append(self.submit(prompt))
                if len(growing) == most:
                    answers.append(_whole(growing))
            while growing:
                answers.append(_whole(growing))
        finally:
            for one in growing:
                one.handle.cancel()
        return answers


def _whole(growing: deque[Growing]) -> Answer:
    growing[0].handle.result()
    return growing.popleft().answer()
