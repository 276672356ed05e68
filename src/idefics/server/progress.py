"""The progress of a streamed request before its first token, from the threads that work on it to its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from idefics.engine.request import RequestProgress


class ProgressQueue:
    """The progress of one request. Any thread may report it; the methods that the event loop calls are marked."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reported: asyncio.Queue[RequestProgress | None] = asyncio.Queue()
        self._prompt_computed = asyncio.Event()
        self._num_opened = self._num_pictures = 0

    def report(self, progress: RequestProgress) -> None:
        """Adds progress, for `run_and_report`; wakes `wait_for_prompt` if the prompt is computed."""
        self._call_in_loop(self._reported.put_nowait, progress)
        if progress.stage == "prompt" and progress.done == progress.total:
            self.end_prompt()

    def expect_pictures(self, num_pictures: int) -> None:
        """Reports that no picture of a prompt is opened yet, if it has some."""
        self._num_opened, self._num_pictures = 0, num_pictures
        if num_pictures:
            self.report(RequestProgress("pictures", 0, num_pictures))

    def report_opened(self) -> None:
        """Reports that one more picture is opened and preprocessed."""
        self._num_opened += 1
        self.report(RequestProgress("pictures", self._num_opened, self._num_pictures))

    def end_prompt(self) -> None:
        """Wakes `wait_for_prompt`: the prompt is computed, or its request has ended."""
        self._call_in_loop(self._prompt_computed.set)

    async def wait_for_prompt(self) -> None:
        """Waits until the prompt is computed or its request has ended. In the event loop."""
        await self._prompt_computed.wait()

    async def run_and_report(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[RequestProgress]:
        """Runs `work` as a task, and yields what is reported until it ends; then raises its error. In the event loop.

        Closing the generator cancels the task.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._reported.put_nowait(None))
        try:
            while (progress := await self._reported.get()) is not None:
                yield progress
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _call_in_loop(self, function: Any, *arguments: Any) -> None:
        """Calls a function in the event loop, unless that has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)
