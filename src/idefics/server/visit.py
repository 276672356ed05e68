"""One request of a client on its way: let in, its prompt made off the event loop, its answers, what it gives back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from idefics.config import Sampling
from idefics.engine.handle import Handle
from idefics.engine.request import Request
from idefics.messages import Answer, Delta, Visual
from idefics.processing.fetch import Fetcher, is_data
from idefics.server.admission import Admission
from idefics.server.faults import Fault, closing
from idefics.server.heap import in_fresh_thread
from idefics.server.metrics import Metrics
from idefics.server.settings import Settings

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.pipeline import Stream
    from idefics.processing.processor import Endings
    from idefics.processing.tokenizer import Tokenizer
    from idefics.prompt import Prompt

WORKERS = 16  # most of them wait for their turn to decode
LONG_TEXT = (
    32_768  # characters of a prompt, from which on it is made in a queue of its own: tens of milliseconds
)

R = TypeVar("R")


class Service:
    """What all requests share.

    Attributes:
        vlm: the model, for pictures and words of strangers.
        workers: make prompts: pictures are decoded and texts cut into tokens there, a few at a time.
        large_bodies: held while one is parsed, a step at a time, so that other requests come between.
        long_texts: makes prompts of long texts, one after another, so that others find a worker and a core.
        fetchers: make those whose pictures other machines hold. Slow ones keep nobody else waiting.
    """

    def __init__(self, vlm: Idefics, settings: Settings) -> None:
        self.vlm, self.settings = for_strangers(vlm, settings), settings
        self.vlm.processor.text_limit.prepare()
        self.metrics = Metrics(vlm)
        self.admission = Admission(settings, lambda reason: self.metrics.refusals.labels(reason).inc())
        self.metrics.visits(lambda: len(self.admission.places))
        self.workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="idefics-server")
        self.large_bodies = asyncio.Lock()
        self.num_long_texts = 0
        self.long_texts = ThreadPoolExecutor(1, thread_name_prefix="idefics-long-texts")
        self.fetchers = ThreadPoolExecutor(settings.fetched_at_once, thread_name_prefix="idefics-fetcher")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.vlm.processor.tokenizer

    def check_model(self, name: str) -> None:
        """Raises a Fault where a client asks for another model than the one that is served."""
        if name != self.settings.served:
            raise Fault(
                404,
                f"the model {name[:100]!r} is not served here: {self.settings.served!r} is",
                code="model_not_found",
                param="model",
            )

    async def aside(
        self, work: Callable[[], R], pictures: Sequence[Visual] = (), *, characters: int = 0
    ) -> R:
        """Work that takes its time, in a thread. Whoever no longer waits for it takes it out of the queue.

        Args:
            pictures: those that it opens.
            characters: of the text that it tokenizes.
        """
        run = asyncio.get_running_loop().run_in_executor
        if any(isinstance(one.source, str) and not is_data(one.source) for one in pictures):
            return await run(self.fetchers, work)
        if characters <= LONG_TEXT:
            return await run(self.workers, work)
        self.num_long_texts += 1
        try:
            return await run(self.long_texts, in_fresh_thread, work, lambda: self.num_long_texts == 1)
        finally:
            self.num_long_texts -= 1


def for_strangers(vlm: Idefics, settings: Settings) -> Idefics:
    """The same model (nothing is copied), which opens no file of this machine and fetches what the settings allow."""
    fetcher = Fetcher(
        policy=settings.remote_images,
        strangers=True,
        turns=threading.Semaphore(settings.decoded_at_once),
        connections=threading.Semaphore(settings.fetched_at_once),
    )
    return vlm.fetching(fetcher)


class Visit:
    """A request that has been let in. Whoever makes one calls `leave`, however it ends.

    Attributes:
        streams: its answers as they grow, one for each choice.
        ranking: endings whose likelihood it waits for.
        prepared: seconds from its arrival until they were asked for.
        characters: of its texts.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.place = service.admission.enter(self.end)
        self.streams: list[Stream] = []
        self.ranking: Handle | None = None
        self.prepared = 0.0
        self.characters = 0
        self.is_ended = False

    def check_texts(self, texts: Iterable[str]) -> None:
        """Takes in the texts of one prompt, before anything is done with them.

        Raises:
            TextTooLong: they cannot fit the model, whatever template they come into.
        """
        texts = [text.strip() for text in texts]  # a template may leave out blanks at the ends
        self.service.vlm.processor.text_limit.check(texts)
        self.characters += sum(map(len, texts))

    async def aside(self, work: Callable[[], R], pictures: Sequence[Visual] = ()) -> R:
        """As `Service.aside`, for work on the request's texts."""
        return await self.service.aside(work, pictures, characters=self.characters)

    async def ask(
        self,
        make: Callable[[], Prompt],
        wishes: Mapping[str, Any],
        *,
        choices: int = 1,
        pictures: Sequence[Visual] = (),
        start: str = "",
        continues: bool = False,
    ) -> None:
        """Makes the prompt and asks for its answers; waits for none to grow.

        Args:
            make: the prompt, in a worker.
            wishes: the keywords of `Idefics.submit`; a seed counts up from choice to choice.
            choices: how many answers.
            pictures: those that the prompt will hold.
            start, continues: as in `Idefics.submit`.

        Raises:
            Fault, IdeficsError: there is no room, or the request is wrong.
        """
        admission = self.service.admission
        admission.take(self.place, pictures=len(pictures))
        prompt = await self.aside(make, pictures)
        longest = self.service.vlm.engine.model.layout.max_positions
        tokens = min(len(prompt) + wishes["max_new_tokens"], longest)
        admission.take(self.place, tokens=choices * tokens)
        if self.is_ended:
            raise closing()
        self.prepared = time.monotonic() - self.place.began
        self.count(prompt)
        wishes = {**wishes, "start": start, "continues": continues}
        await self.service.aside(lambda: self._submit(prompt, wishes, choices))

    async def scores(
        self,
        make: Callable[[], Endings],
        *,
        pictures: Sequence[Visual] = (),
        top: int = 0,
        is_counted: bool = True,
    ) -> Handle:
        """Makes a prompt and its endings, and asks how likely they are. Raises as `ask`.

        Args:
            top: so many of the likeliest tokens in the place of each token are told too.
            is_counted: whether the prompt is one more of the metrics.
        """
        admission = self.service.admission
        admission.take(self.place, pictures=len(pictures))
        prompt, endings = await self.aside(make, pictures)
        admission.take(self.place, tokens=len(prompt) + sum(map(len, endings)))
        if self.is_ended:
            raise closing()
        if is_counted:
            self.count(prompt)
        self.ranking = self.service.vlm.engine.submit(
            Request(prompt, Sampling(logprobs=top > 0, top_logprobs=top), endings=endings)
        )
        await self.ranking
        if self.is_ended:
            raise closing()
        return self.ranking

    def count(self, prompt: Prompt) -> None:
        """Adds a prompt to the metrics."""
        self.service.metrics.prompt_tokens.inc(len(prompt))
        self.service.metrics.pictures.inc(len(prompt.pictures))

    def _submit(self, prompt: Prompt, wishes: Mapping[str, Any], choices: int) -> None:
        """In a worker: what a forced form allows takes a while to find out."""
        seed = wishes.get("seed")
        for number in range(choices):
            own = {} if seed is None else {"seed": (seed + number) % (1 << 63)}
            stream = self.service.vlm.submit(prompt, **{**wishes, **own})
            self.streams.append(stream)
            if self.is_ended:  # meanwhile
                stream.close()

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """What each choice gains, as it comes: (its number, what is new).

        Raises:
            Fault: the server went down before the end.
        """
        coming = [stream.deltas() for stream in self.streams]
        if len(coming) == 1:
            async for only in coming[0]:
                yield 0, only
            coming = []
        waiting = {_next(one): number for number, one in enumerate(coming)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number, delta = waiting.pop(task), task.result()
                    if delta is not None:
                        yield number, delta
                        waiting[_next(coming[number])] = number
        finally:
            for task in waiting:
                task.cancel()
        if self.is_ended:
            raise closing()

    async def answers(self) -> list[Answer]:
        """The choices, once all of them have ended. Raises as `deltas`."""
        async for _ in self.deltas():
            pass
        return [stream.answer for stream in self.streams]

    def end(self) -> None:
        """The server goes down: no answer grows any more."""
        self.is_ended = True
        for stream in list(self.streams):
            stream.close()
        if self.ranking is not None:
            self.ranking.cancel()

    def leave(self) -> None:
        """Gives back what the request held; answers that nobody will read end here."""
        try:
            self.end()
            for stream in self.streams:
                answer = stream.answer
                timings = answer.timings
                waited = timings.first_token + self.prepared
                self.service.metrics.answered(answer.usage, waited, timings.total - timings.first_token)
        finally:
            self.service.admission.leave(self.place)


async def _anext(coming: AsyncGenerator[Delta]) -> Delta | None:
    return await anext(coming, None)


def _next(coming: AsyncGenerator[Delta]) -> asyncio.Task[Delta | None]:
    return asyncio.create_task(_anext(coming))
