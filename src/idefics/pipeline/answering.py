"""Answers while they grow: options of a call, an answer that is collected, a stream of its text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TypedDict

from idefics.engine.request import Sequence as Row
from idefics.messages import Answer, Timings, Usage
from idefics.processing.detokenizer import Detokenizer


class Options(TypedDict, total=False):
    """What every call that generates takes; the fields of `Sampling`, and stop strings."""

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


class Stream:
    """An answer as it comes: iterate it for pieces of text; afterwards `answer` holds the whole.

    Leaving the loop early cancels the rest; `answer` is then what came until there.
    """

    def __init__(self, pieces: Generator[str], collected: Growing) -> None:
        self._pieces, self._collected = pieces, collected

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer here."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The answer so far; complete once the stream has ended."""
        return self._collected.answer()


Reply = Answer | list[Answer] | Stream


class Growing:
    """One answer while it is generated. `start` are the caller's words that its text begins with."""

    def __init__(self, row: Row, text: Detokenizer, start: str, began: float) -> None:
        self.row, self.text, self.start, self.began = row, text, start, began
        self.prepared = self.last = time.perf_counter()
        self.first: float | None = None

    def push(self, token: int, spelled: bytes) -> str:
        """Takes the next token, whose UTF-8 is `spelled`; returns the text that became certain."""
        self.last = time.perf_counter()
        piece = self.text.push(token)
        if self.text.stopped:
            self.row.finish("stop")
        if self.first is not None:
            return piece
        self.first = self.last
        if self.start and spelled.startswith(b" "):
            self.start += " "
        return self.start + piece

    def answer(self) -> Answer:
        request = self.row.request
        first = self.last if self.first is None else self.first
        return Answer(
            text=self.start + self.text.text,
            tokens=tuple(self.row.ids),
            finish=self.row.finish_reason or "cancelled",
            usage=Usage(len(request.prompt), len(self.row.ids), len(request.prompt.pictures)),
            timings=Timings(self.prepared - self.began, first - self.began, self.last - self.began),
            logprobs=tuple(self.row.logprobs) if request.sampling.logprobs else None,
        )
