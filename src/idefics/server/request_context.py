"""One request of a client on its way: let in, its prompt made off the event loop, its answers, what it gives back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from idefics.config import Sampling
from idefics.engine.handle import RequestHandle
from idefics.engine.request import Request
from idefics.messages import Answer, Delta, PictureOrVideo
from idefics.processing.fetch import Fetcher, is_data_uri
from idefics.server.admission import AdmissionControl
from idefics.server.errors import APIError, shutting_down_error
from idefics.server.metrics import Metrics
from idefics.server.settings import Settings
from idefics.server.temporary_thread import run_in_temporary_thread

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.generation import Stream
    from idefics.processing.processor import ScoringPrompt
    from idefics.processing.tokenizer import Tokenizer
    from idefics.prompt import Prompt

NUM_WORKERS = 16  # most of them wait for their turn to decode
LONG_TEXT_CHARACTERS = (
    32_768  # characters of a prompt, from which on it is made in a queue of its own: tens of milliseconds
)

R = TypeVar("R")


class ServerState:
    """What all requests share.

    Attributes:
        vlm: the model, for pictures and words of strangers.
        workers: make prompts: pictures are decoded and texts cut into tokens there, a few at a time.
        large_body_lock: held while one is parsed, a step at a time, so that other requests come between.
        long_text_pool: makes prompts of long texts, one after another, so that others find a worker and a core.
        fetchers: make those whose pictures other machines hold. Slow ones keep nobody else waiting.
    """

    def __init__(self, vlm: Idefics, settings: Settings) -> None:
        self.vlm, self.settings = restrict_untrusted_input(vlm, settings), settings
        self.vlm.processor.text_limit.precompute()
        self.metrics = Metrics(vlm)
        self.admission = AdmissionControl(settings, lambda reason: self.metrics.refusals.labels(reason).inc())
        self.metrics.track_active_requests(lambda: len(self.admission.slots))
        self.workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="idefics-server")
        self.large_body_lock = asyncio.Lock()
        self.num_long_texts = 0
        self.long_text_pool = ThreadPoolExecutor(1, thread_name_prefix="idefics-long-texts")
        self.fetchers = ThreadPoolExecutor(settings.fetched_at_once, thread_name_prefix="idefics-fetcher")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.vlm.processor.tokenizer

    def check_model(self, name: str) -> None:
        """Raises a Fault where a client asks for another model than the one that is served."""
        if name != self.settings.served_model_name:
            raise APIError(
                404,
                f"the model {name[:100]!r} is not served here: {self.settings.served_model_name!r} is",
                code="model_not_found",
                param="model",
            )

    async def run_in_worker(
        self, function: Callable[[], R], pictures: Sequence[PictureOrVideo] = (), *, num_characters: int = 0
    ) -> R:
        """Work that takes its time, in a thread. Whoever no longer waits for it takes it out of the queue.

        Args:
            pictures: those that it opens.
            num_characters: of the text that it tokenizes.
        """
        run_in_executor = asyncio.get_running_loop().run_in_executor
        if any(isinstance(one.source, str) and not is_data_uri(one.source) for one in pictures):
            return await run_in_executor(self.fetchers, function)
        if num_characters <= LONG_TEXT_CHARACTERS:
            return await run_in_executor(self.workers, function)
        self.num_long_texts += 1
        try:
            return await run_in_executor(
                self.long_text_pool, run_in_temporary_thread, function, lambda: self.num_long_texts == 1
            )
        finally:
            self.num_long_texts -= 1


def restrict_untrusted_input(vlm: Idefics, settings: Settings) -> Idefics:
    """The same model (nothing is copied), which opens no file of this machine and fetches what the settings allow."""
    fetcher = Fetcher(
        policy=settings.remote_images,
        untrusted=True,
        decode_slots=threading.Semaphore(settings.decoded_at_once),
        fetch_slots=threading.Semaphore(settings.fetched_at_once),
    )
    return vlm.fetching(fetcher)


class RequestContext:
    """A request that has been let in. Whoever makes one calls `close`, however it ends.

    Attributes:
        streams: its answers as they grow, one for each choice.
        scoring_handle: endings whose likelihood it waits for.
        preparation_time: seconds from its arrival until they were asked for.
        num_characters: of its texts.
    """

    def __init__(self, service: ServerState) -> None:
        self.service = service
        self.slot = service.admission.acquire_slot(self.cancel)
        self.streams: list[Stream] = []
        self.scoring_handle: RequestHandle | None = None
        self.preparation_time = 0.0
        self.num_characters = 0
        self.is_cancelled = False

    def check_texts(self, texts: Iterable[str]) -> None:
        """Takes in the texts of one prompt, before anything is done with them.

        Raises:
            TextTooLong: they cannot fit the model, whatever template they come into.
        """
        texts = [text.strip() for text in texts]  # a template may leave out blanks at the ends
        self.service.vlm.processor.text_limit.check(texts)
        self.num_characters += sum(map(len, texts))

    async def run_in_worker(self, function: Callable[[], R], pictures: Sequence[PictureOrVideo] = ()) -> R:
        """As `Service.aside`, for work on the request's texts."""
        return await self.service.run_in_worker(function, pictures, num_characters=self.num_characters)

    async def submit_prompt(
        self,
        make_prompt: Callable[[], Prompt],
        generation_kwargs: Mapping[str, Any],
        *,
        num_choices: int = 1,
        pictures: Sequence[PictureOrVideo] = (),
        text_prefix: str = "",
        continues_text: bool = False,
    ) -> None:
        """Makes the prompt and asks for its answers; waits for none to grow.

        Args:
            make_prompt: the prompt, in a worker.
            generation_kwargs: the keywords of `Idefics.submit`; a seed counts up from choice to choice.
            num_choices: how many answers.
            pictures: those that the prompt will hold.
            text_prefix, continues_text: as in `Idefics.submit`.

        Raises:
            Fault, IdeficsError: there is no room, or the request is wrong.
        """
        admission = self.service.admission
        admission.reserve(self.slot, pictures=len(pictures))
        prompt = await self.run_in_worker(make_prompt, pictures)
        max_positions = self.service.vlm.engine.model.layout.max_positions
        num_tokens = min(len(prompt) + generation_kwargs["max_new_tokens"], max_positions)
        admission.reserve(self.slot, tokens=num_choices * num_tokens)
        if self.is_cancelled:
            raise shutting_down_error()
        self.preparation_time = time.monotonic() - self.slot.start_time
        self.count_prompt(prompt)
        generation_kwargs = {**generation_kwargs, "start": text_prefix, "continues": continues_text}
        await self.service.run_in_worker(lambda: self._submit_choices(prompt, generation_kwargs, num_choices))

    async def score_continuations(
        self,
        make_prompt: Callable[[], ScoringPrompt],
        *,
        pictures: Sequence[PictureOrVideo] = (),
        num_top_logprobs: int = 0,
        counts_prompt: bool = True,
    ) -> RequestHandle:
        """Makes a prompt and its endings, and asks how likely they are. Raises as `ask`.

        Args:
            num_top_logprobs: so many of the likeliest tokens in the place of each token are told too.
            counts_prompt: whether the prompt is one more of the metrics.
        """
        admission = self.service.admission
        admission.reserve(self.slot, pictures=len(pictures))
        prompt, continuations = await self.run_in_worker(make_prompt, pictures)
        admission.reserve(self.slot, tokens=len(prompt) + sum(map(len, continuations)))
        if self.is_cancelled:
            raise shutting_down_error()
        if counts_prompt:
            self.count_prompt(prompt)
        self.scoring_handle = self.service.vlm.engine.submit(
            Request(
                prompt,
                Sampling(logprobs=num_top_logprobs > 0, top_logprobs=num_top_logprobs),
                continuations=continuations,
            )
        )
        await self.scoring_handle
        if self.is_cancelled:
            raise shutting_down_error()
        return self.scoring_handle

    def count_prompt(self, prompt: Prompt) -> None:
        """Adds a prompt to the metrics."""
        self.service.metrics.prompt_tokens.inc(len(prompt))
        self.service.metrics.pictures.inc(len(prompt.pictures))

    def _submit_choices(self, prompt: Prompt, generation_kwargs: Mapping[str, Any], num_choices: int) -> None:
        """In a worker: what a forced form allows takes a while to find out."""
        seed = generation_kwargs.get("seed")
        for choice_index in range(num_choices):
            seed_kwargs = {} if seed is None else {"seed": (seed + choice_index) % (1 << 63)}
            stream = self.service.vlm.submit(prompt, **{**generation_kwargs, **seed_kwargs})
            self.streams.append(stream)
            if self.is_cancelled:  # meanwhile
                stream.close()

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """What each choice gains, as it comes: (its number, what is new).

        Raises:
            Fault: the server went down before the end.
        """
        delta_iterators = [stream.deltas() for stream in self.streams]
        if len(delta_iterators) == 1:
            async for single_delta in delta_iterators[0]:
                yield 0, single_delta
            delta_iterators = []
        index_by_task = {_create_next_task(one): index for index, one in enumerate(delta_iterators)}
        try:
            while index_by_task:
                done, _ = await asyncio.wait(index_by_task, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index, delta = index_by_task.pop(task), task.result()
                    if delta is not None:
                        yield index, delta
                        index_by_task[_create_next_task(delta_iterators[index])] = index
        finally:
            for task in index_by_task:
                task.cancel()
        if self.is_cancelled:
            raise shutting_down_error()

    async def answers(self) -> list[Answer]:
        """The choices, once all of them have ended. Raises as `deltas`."""
        async for _ in self.deltas():
            pass
        return [stream.answer for stream in self.streams]

    def cancel(self) -> None:
        """The server goes down: no answer grows any more."""
        self.is_cancelled = True
        for stream in list(self.streams):
            stream.close()
        if self.scoring_handle is not None:
            self.scoring_handle.cancel()

    def close(self) -> None:
        """Gives back what the request held; answers that nobody will read end here."""
        try:
            self.cancel()
            for stream in self.streams:
                answer = stream.answer
                timings = answer.timings
                time_to_first_token = timings.first_token + self.preparation_time
                self.service.metrics.record_answer(
                    answer.usage, time_to_first_token, timings.total - timings.first_token
                )
        finally:
            self.service.admission.release_slot(self.slot)


async def _next_delta(deltas: AsyncGenerator[Delta]) -> Delta | None:
    return await anext(deltas, None)


def _create_next_task(deltas: AsyncGenerator[Delta]) -> asyncio.Task[Delta | None]:
    return asyncio.create_task(_next_delta(deltas))
