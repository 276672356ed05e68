"""Answers while they grow: an answer that is collected, a stream of its text."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from idefics.config import Sampling
from idefics.engine.engine import Engine
from idefics.engine.handle import Handle
from idefics.engine.request import Request
from idefics.errors import IdeficsError
from idefics.messages import Answer, Delta, Timings
from idefics.pipeline.failures import Failures
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.generation_rules import GenerationRules
from idefics.processing.guides import BannedGuide, BannedWords, FormGuide, Shape
from idefics.processing.rule_guide import RuleGuide
from idefics.processing.tokenizer import Tokenizer
from idefics.prompt import Prompt


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How prompts are answered, whatever they are.

    Attributes:
        stop_ids, banned_ids: as in `Request`.
        stops: strings that end an answer.
        rules: what the checkpoint asks of every answer.
        limits: the form of the answers, or words that are banned from them.
        hidden: ids that an answer's text leaves out.
        start: the caller's words that each answer's text begins with.
        continues: whether the answer goes on in the middle of a text, and so keeps a space at its beginning.
        began: when the caller asked.
    """

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]
    stops: tuple[str, ...]
    rules: GenerationRules
    limits: Shape | BannedWords | None
    hidden: frozenset[int]
    start: str
    continues: bool
    began: float

    def submit(self, prompt: Prompt, *, wait: bool = True) -> Growing:
        """Asks for one answer, and waits for room in the queue unless told not to."""
        guide: FormGuide | BannedGuide | RuleGuide | None = None
        if self.limits is not None or self.rules.stepwise:
            room = self.engine.room(prompt, self.sampling)
            guide = None if self.limits is None else self.limits.guide(room)
            if self.rules.stepwise:
                vocabulary = self.engine.model.layout.vocabulary
                guide = RuleGuide(self.rules, prompt.ids, room, vocabulary, self.stop_ids, guide)
        growing = Growing(self, guide)
        request = Request(prompt, self.sampling, self.stop_ids, self.banned_ids, growing.push, guide=guide)
        growing.handle = self.engine.submit(request, wait=wait)
        return growing

    def answer(self, prompt: Prompt) -> Answer:
        """One answer."""
        growing = self.submit(prompt)
        growing.handle.result()
        return growing.answer()

    def answers(
        self, prompts: Generator[Prompt | IdeficsError], failures: Failures
    ) -> list[Answer | IdeficsError]:
        """Answers to many, which are asked for as they come; an error that is raised cancels the rest.

        Args:
            prompts: each prompt, or why there is none.
            failures: what is done about errors.
        """
        most = 2 * self.engine.config.batch_rows  # asked for at once: prompts hold pictures
        growing: deque[Growing | IdeficsError] = deque()
        answers: list[Answer | IdeficsError] = []

        def collect() -> None:
            answers.append(failures.attempt(len(answers), partial(_whole, growing[0])))
            growing.popleft()

        try:
            with closing(prompts):
                for index, prompt in enumerate(prompts):
                    growing.append(failures.attempt(index, partial(self._begun, prompt)))
                    if len(growing) == most:
                        collect()
            while growing:
                collect()
        finally:
            for one in growing:
                if isinstance(one, Growing):
                    one.handle.cancel()
        return answers

    def _begun(self, prompt: Prompt | IdeficsError) -> Growing:
        if isinstance(prompt, IdeficsError):
            raise prompt
        return self.submit(prompt)


def _whole(growing: Growing | IdeficsError) -> Answer:
    if isinstance(growing, IdeficsError):
        raise growing
    growing.handle.result()
    return growing.answer()
