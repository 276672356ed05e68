"""The context of one request: its prompts, its answers and its admission slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from idefics.config import Sampling
from idefics.engine.handle import RequestHandle
from idefics.engine.request import Request
from idefics.messages import Answer, Delta, PictureOrVideo
from idefics.server.admission import count_pictures
from idefics.server.errors import shutting_down_error
from idefics.server.server_state import ServerState
from idefics.server.sse import ProgressQueue

if TYPE_CHECKING:
    from idefics import Stream
    from idefics.prompt import Prompt, ScoringPrompt

P = TypeVar("P")  # a prompt
R = TypeVar("R")


class RequestContext:
    """An admitted request. Its creator must call `close`, however the request ends.

    Attributes:
        service: the state that all requests share.
        vlm: the model that answers; it reports pictures that it has opened, if the progress is reported.
        slot: what the request uses of the limits.
        streams: its answers, one per choice.
        scoring_handle: the scoring request that it waits for.
        progress: how far it is; reported once `start_reporting` was called.
        preparation_time: seconds from its arrival until its answers were submitted.
        num_characters: characters of all its texts.
        is_cancelled: whether a shutdown cancelled it, or it is closed.
    """

    def __init__(self, service: ServerState, *, is_background: bool = False) -> None:
        self.service, self.vlm = service, service.vlm
        self.slot = service.admission.acquire_slot(self.cancel, is_background=is_background)
        self.streams: list[Stream] = []
        self.scoring_handle: RequestHandle | None = None
        self.preparation_time = 0.0
        self.progress = ProgressQueue()
        self.num_characters = 0
        self.is_cancelled = False

    def start_reporting(self) -> None:
        """From now on progress is reported. To be called before prompts are made."""
        self.progress.is_active = True
        fetcher = replace(self.vlm.processor.fetcher, on_opened=self.progress.report_opened)
        self.vlm = self.vlm.fetching(fetcher)

    async def submit_and_wait_for_prompt(self, submit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Submits prompts by `submit`, and waits until the first of them is computed, or its answer has ended."""
        await submit()
        if self.streams:
            await self.progress.wait_for_prompt()

    def check_and_count_texts(self, texts: Iterable[str]) -> None:
        """Checks the length of a prompt's texts before they are tokenized, and adds it to `num_characters`.

        Raises:
            TextTooLong: the texts exceed the context of the model, whatever the template.
        """
        texts = [text.strip() for text in texts]  # a template may strip them
        self.service.vlm.processor.text_limit.check(texts)
        self.num_characters += sum(map(len, texts))

    async def run_in_worker(self, function: Callable[[], R], pictures: Sequence[PictureOrVideo] = ()) -> R:
        """Calls a function that tokenizes the request's texts or opens pictures in a thread, and returns its result.

        Args:
            pictures: those that the function opens.
        """
        return await self.service.run_in_worker(function, pictures, num_characters=self.num_characters)

    async def submit_prompt(
        self,
        make_prompt: Callable[[], Prompt],
        generation_kwargs: Mapping[str, Any],
        *,
        num_choices: int = 1,
        pictures: Sequence[PictureOrVideo] = (),
    ) -> None:
        """Makes a prompt and submits its choices to the engine; adds them to `streams`, and does not wait for them.

        Args:
            make_prompt: makes the prompt, in a thread.
            generation_kwargs: keyword arguments of `Idefics.submit`; choice i is sampled with `seed` + i.
            num_choices: number of answers.
            pictures: the pictures of the prompt.

        Raises:
            APIError: 429, a limit is exceeded; 503, the server is shutting down.
            IdeficsError: the request is invalid.
        """
        max_positions = self.service.vlm.engine.model.layout.max_positions
        prompt = await self.make_prompt(
            make_prompt,
            pictures,
            lambda prompt: (
                num_choices * min(len(prompt) + generation_kwargs["max_new_tokens"], max_positions)
            ),
        )
        self.preparation_time = time.monotonic() - self.slot.start_time
        self.record_prompt_metrics(prompt)
        await self.service.run_in_worker(lambda: self._submit_choices(prompt, generation_kwargs, num_choices))

    async def score_continuations(
        self,
        make_prompt: Callable[[], ScoringPrompt],
        *,
        pictures: Sequence[PictureOrVideo] = (),
        num_top_logprobs: int = 0,
    ) -> RequestHandle:
        """Makes a prompt with continuations, and waits until the engine has scored them.

        Args:
            make_prompt: makes the prompt, in a thread.
            pictures: the pictures of the prompt.
            num_top_logprobs: number of most likely tokens to report at each position.

        Returns:
            The finished scoring request, with the log-probabilities.

        Raises:
            APIError, IdeficsError: as in `submit_prompt`.
        """
        scoring_prompt = await self.make_prompt(
            make_prompt, pictures, lambda made: len(made.prompt) + sum(map(len, made.continuations))
        )
        self.scoring_handle = self.service.vlm.engine.submit(
            Request(
                scoring_prompt.prompt,
                Sampling(logprobs=num_top_logprobs > 0, top_logprobs=num_top_logprobs),
                continuations=scoring_prompt.continuations,
            )
        )
        await self.scoring_handle
        self.check_not_cancelled()
        return self.scoring_handle

    async def make_prompt(
        self,
        make_prompt: Callable[[], P],
        pictures: Sequence[PictureOrVideo],
        count_tokens: Callable[[P], int],
    ) -> P:
        """Makes a prompt in a thread, and reserves its pictures and tokens.

        Args:
            make_prompt: makes the prompt.
            pictures: the pictures of the prompt, reserved before it is made.
            count_tokens: returns the number of tokens to reserve for a prompt, once it is made.

        Raises:
            APIError: 429, a limit is exceeded; 503, a shutdown has cancelled the request.
        """
        admission = self.service.admission
        admission.reserve(self.slot, pictures=sum(map(count_pictures, pictures)))
        self.progress.expect_pictures(len(pictures))
        prompt = await self.run_in_worker(make_prompt, pictures)
        admission.reserve(self.slot, tokens=count_tokens(prompt))
        self.check_not_cancelled()
        return prompt

    def check_not_cancelled(self) -> None:
        """Raises an `APIError` (503) if a shutdown has cancelled the request."""
        if self.is_cancelled:
            raise shutting_down_error()

    def record_prompt_metrics(self, prompt: Prompt) -> None:
        """Adds the tokens and pictures of a prompt to the metrics."""
        self.service.metrics.prompt_tokens.inc(len(prompt))
        self.service.metrics.pictures.inc(len(prompt.pictures))

    def _submit_choices(self, prompt: Prompt, generation_kwargs: Mapping[str, Any], num_choices: int) -> None:
        """Submits `num_choices` answers to a prompt to the engine, and adds their streams to `streams`.

        Runs in a thread, since compiling a grammar takes a while.
        """
        seed = generation_kwargs.get("seed")
        for choice_index in range(num_choices):
            seed_kwargs = {} if seed is None else {"seed": (seed + choice_index) % (1 << 63)}
            reports = self.progress.is_active and not self.streams  # the progress is that of the first answer
            stream = self.vlm.submit(
                prompt,
                on_progress=self.progress.report if reports else None,
                **{**generation_kwargs, **seed_kwargs},
            )
            self.streams.append(stream)
            if reports:
                stream.call_when_done(self.progress.end_prompt)
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
        index_by_task = {_create_next_delta_task(one): index for index, one in enumerate(delta_iterators)}
        try:
            while index_by_task:
                done, _ = await asyncio.wait(index_by_task, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index, delta = index_by_task.pop(task), task.result()
                    if delta is not None:
                        yield index, delta
                        index_by_task[_create_next_delta_task(delta_iterators[index])] = index
        finally:
            for task in index_by_task:
                task.cancel()
        self.check_not_cancelled()

    @property
    def answers(self) -> list[Answer]:
        """The answers of all choices, as far as they are generated."""
        return [stream.answer for stream in self.streams]

    async def wait_for_answers(self) -> list[Answer]:
        """Waits for all choices and returns them. Raises as `deltas`."""
        async for _ in self.deltas():
            pass
        return self.answers

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
            for answer in self.answers:
                timings = answer.timings
                time_to_first_token = timings.first_token + self.preparation_time
                self.service.metrics.record_answer(
                    answer.usage, time_to_first_token, timings.total - timings.first_token
                )
        finally:
            self.service.admission.release_slot(self.slot)


def _create_next_delta_task(deltas: AsyncGenerator[Delta]) -> asyncio.Future[Delta | None]:
    """A task that waits for the next delta of an answer; its result is None if there is no further one."""
    return asyncio.ensure_future(anext(deltas, None))
