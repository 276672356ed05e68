"""State that all requests share, and the context of one request: its prompts, its answers, its admission slot."""

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
    from idefics.processing.tokenizer import Tokenizer
    from idefics.prompt import Prompt, ScoringPrompt

NUM_WORKERS = 16  # threads that make prompts; most of them wait for one of the `decode_slots`
LONG_TEXT_CHARACTERS = (
    32_768  # prompts of more characters take tens of milliseconds, and have a thread of their own
)

R = TypeVar("R")


class ServerState:
    """State that all requests share.

    Attributes:
        vlm: the model; it opens no files, and fetches pictures only as the settings allow.
        metrics: counters for `/metrics`.
        admission: limits on what all requests use together.
        large_body_lock: held while a large body is parsed.
        workers: threads that make prompts: they decode pictures and tokenize texts.
        long_text_pool: one thread for prompts of long texts, so that they do not occupy the workers.
        num_long_texts: prompts that use or wait for `long_text_pool`.
        fetchers: threads for prompts with pictures on other machines, so that slow ones do not occupy the workers.
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
        """The model's tokenizer."""
        return self.vlm.processor.tokenizer

    def check_model(self, name: str) -> None:
        """Raises an `APIError` (404) if `name` is not the name of the served model."""
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
        """Calls a function in a thread, and returns its result. A call that is cancelled while it waits never runs.

        Args:
            pictures: those that the function opens.
            num_characters: characters of the texts that it tokenizes.
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
    """The same model (nothing is copied) that opens no files, and fetches pictures only as the settings allow."""
    fetcher = Fetcher(
        policy=settings.remote_images,
        untrusted=True,
        decode_slots=threading.Semaphore(settings.decoded_at_once),
        fetch_slots=threading.Semaphore(settings.fetched_at_once),
    )
    return vlm.fetching(fetcher)


class RequestContext:
    """An admitted request. Whoever creates one must call `close`, however the request ends.

    Attributes:
        service: what all requests share.
        slot: what the request uses of the limits.
        streams: its answers, one per choice.
        scoring_handle: the scoring request that it waits for.
        preparation_time: seconds from its arrival until its answers were submitted.
        num_characters: characters of all its texts.
        is_cancelled: whether the server shut down before the request was complete.
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
        """Checks the length of a prompt's texts before they are tokenized, and adds it to `num_characters`.

        Raises:
            TextTooLong: the texts exceed the context of the model, whatever the template.
        """
        texts = [text.strip() for text in texts]  # a template may strip them
        self.service.vlm.processor.text_limit.check(texts)
        self.num_characters += sum(map(len, texts))

    async def run_in_worker(self, function: Callable[[], R], pictures: Sequence[PictureOrVideo] = ()) -> R:
        """Calls a function that tokenizes the request's texts in a thread, as `ServerState.run_in_worker`."""
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
        """Makes a prompt and submits its choices to the engine; adds them to `streams`, and does not wait for them.

        Args:
            make_prompt: makes the prompt, in a thread.
            generation_kwargs: keyword arguments of `Idefics.submit`; choice i is sampled with `seed` + i.
            num_choices: number of answers.
            pictures: the pictures of the prompt.
            text_prefix, continues_text: `start` and `continues` of `Idefics.submit`.

        Raises:
            APIError: 429, a limit is exceeded; 503, the server is shutting down.
            IdeficsError: the request is invalid.
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
        """Makes a prompt with continuations, and waits until the engine has scored them.

        Args:
            make_prompt: makes the prompt, in a thread.
            pictures: the pictures of the prompt.
            num_top_logprobs: number of most likely tokens to report at each position.
            counts_prompt: whether to add the prompt to the metrics.

        Returns:
            The finished scoring request, with the log-probabilities.

        Raises:
            APIError, IdeficsError: as in `submit_prompt`.
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
        """Adds the tokens and pictures of a prompt to the metrics."""
        self.service.metrics.prompt_tokens.inc(len(prompt))
        self.service.metrics.pictures.inc(len(prompt.pictures))

    def _submit_choices(self, prompt: Prompt, generation_kwargs: Mapping[str, Any], num_choices: int) -> None:
        """Runs in a thread, since compiling a grammar takes a while."""
        seed = generation_kwargs.get("seed")
        for choice_index in range(num_choices):
            seed_kwargs = {} if seed is None else {"seed": (seed + choice_index) % (1 << 63)}
            stream = self.service.vlm.submit(prompt, **{**generation_kwargs, **seed_kwargs})
            self.streams.append(stream)
            if self.is_cancelled:  # since this thread was started
                stream.close()

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """The deltas of all choices as they come, each with the index of its choice.

        Raises:
            APIError: 503, the server shut down before the answers were complete.
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
        """Waits for all choices and returns them. Raises as `deltas`."""
        async for _ in self.deltas():
            pass
        return [stream.answer for stream in self.streams]

    def cancel(self) -> None:
        """Ends the request early: closes its answers and cancels its scoring."""
        self.is_cancelled = True
        for stream in list(self.streams):
            stream.close()
        if self.scoring_handle is not None:
            self.scoring_handle.cancel()

    def close(self) -> None:
        """Closes answers that are not complete, records the metrics of all, and releases the slot."""
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
