"""`RowMappingMixin`: `map`, which runs a task over any number of rows lazily, with a bounded number in hand."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Set,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from idefics.errors import BadSetting, IdeficsError
from idefics.generation.call_inputs import ErrorPolicy
from idefics.messages import Answer, Ranking
from idefics.options import MapOptions, document_and_check_options
from idefics.tasks.row_window import RowWindow
from idefics.tasks.task_call import TaskCall
from idefics.tasks.text_task_mixin import TextTaskMixin
from idefics.validation import short_repr, validate_bool

if TYPE_CHECKING:
    from idefics.tasks.picture_arguments import PictureInput

    Row = PictureInput | Mapping[str, Any] | IdeficsError


@dataclass(frozen=True, slots=True)
class MapResult:
    """The result of one row of `map`.

    Attributes:
        index: the row's number in the input, from 0.
        row: the row as it was given.
        result: the answer, or the ranking of `classify`; with `on_error="return"` the error of a row that failed.
    """

    index: int
    row: Any
    result: Answer | Ranking | IdeficsError


class RowMappingMixin(TextTaskMixin):
    """Runs a task over rows: pictures, or dicts with a picture and a prompt."""

    @document_and_check_options(MapOptions)
    def map(
        self,
        rows: Iterable[Row],
        task: str = "caption",
        *,
        prompt: str | None = None,
        ordered: bool = True,
        on_error: str = "raise",
        **options: Unpack[MapOptions],
    ) -> MapResults:
        """Runs a task over rows, lazily: rows are taken as answers are read, and a bounded number is in hand.

        Reading, decoding and preprocessing run on worker threads while the engine encodes and generates for the rows
        before. Memory does not depend on the number of rows. Leaving the loop cancels the rows in hand.

        Args:
            rows: an iterable of pictures, in any form that `Picture` takes, or of dicts: "image" is the picture and
                "prompt" the row's question or text; other keys are left alone. An `IdeficsError` in the place of a row
                is its result.
            task: "caption", "complete", "ask", "write", "classify" or another key of `idefics.tasks.TASKS`.
            prompt: the question or text of rows that have none of their own; None: the task's default.
            ordered: yield results in the order of the rows; False: as they are ready, which keeps the engine busy
                where answers differ much in length.
            on_error: "raise" the first error of a row, with its number; or "return" errors in the place of results.
            **options: see `Options`, with `timeout` for each row; and for "classify" `labels`, `length_normalized` and
                `calibrated`.

        Returns:
            An iterator with a `MapResult` for each row.

        Raises:
            BadSetting: an argument is wrong; raised at the call, before any row is taken.
            BadRequest: a row is wrong, with `on_error="raise"`.

        Examples:
            >>> for done in vlm.map(Path("photos").glob("*.jpg"), "ask", prompt="Is it day or night?"):
            ...     print(done.row, done.result)
        """
        error_policy = ErrorPolicy("row", 0, on_error)  # type: ignore[arg-type]  # it checks the word
        validate_bool("ordered", ordered)
        if isinstance(rows, (str, bytes, Mapping, Set)) or not isinstance(rows, Iterable):
            raise BadSetting(
                f"rows is {short_repr(rows)}: give an iterable of pictures or of dicts, such as a list"
            )
        call = TaskCall(self, task, prompt, options)
        window = RowWindow(call.submit, 2 * self.loaded_model.engine.config.batch_rows)
        return MapResults(window, _iterate_results(window, iter(rows), ordered, error_policy))

    @document_and_check_options(MapOptions)
    async def map_async(
        self,
        rows: Iterable[Row] | AsyncIterable[Row],
        task: str = "caption",
        *,
        prompt: str | None = None,
        ordered: bool = True,
        on_error: str = "raise",
        **options: Unpack[MapOptions],
    ) -> AsyncGenerator[MapResult]:
        """`map` for asyncio: the event loop is never blocked; `rows` may be an asynchronous iterable too.

        Args:
            rows, task, prompt, ordered, on_error, **options: see `map`.

        Yields:
            A `MapResult` for each row.

        Examples:
            >>> async for done in vlm.map_async(paths, "caption"):
            ...     print(done.row, done.result)
        """
        loop = asyncio.get_running_loop()
        plain_rows = _iterate_in_thread(rows, loop) if isinstance(rows, AsyncIterable) else rows
        results = self.map(plain_rows, task, prompt=prompt, ordered=ordered, on_error=on_error, **options)
        thread = ThreadPoolExecutor(1, thread_name_prefix="idefics-map")
        try:
            while (done := await loop.run_in_executor(thread, partial(next, results, None))) is not None:
                yield done
        finally:
            thread.submit(results.close)  # after the step that may be running in that thread
            thread.shutdown(wait=False)


def _iterate_in_thread(rows: AsyncIterable[Row], loop: asyncio.AbstractEventLoop) -> Iterator[Row]:
    """Iterates an asynchronous iterable of the event loop in another thread."""
    iterator, end = aiter(rows), object()

    async def take_next() -> Any:
        return await anext(iterator, end)

    while (row := asyncio.run_coroutine_threadsafe(take_next(), loop).result()) is not end:
        yield row


class MapResults:
    """The results of `map`: an iterator of `MapResult`, which may be cancelled from another thread.

    It is a context manager that closes itself; one that nobody refers to is closed too.
    """

    def __init__(self, window: RowWindow, results: Generator[MapResult]) -> None:
        self._window, self._results = window, results

    def __iter__(self) -> Iterator[MapResult]:
        return self

    def __next__(self) -> MapResult:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the rows in hand and ends the iteration; for the thread that iterates."""
        self._results.close()

    def cancel(self) -> None:
        """Cancels the rows in hand, from any thread: no more rows are taken, and the iteration ends soon.

        Answers that were being generated are yielded as far as they are, with `finish` "cancelled".
        """
        self._window.cancel()


def _iterate_results(
    window: RowWindow, rows: Iterator[Row], ordered: bool, error_policy: ErrorPolicy
) -> Generator[MapResult]:
    """Yields the results of `map`, whose arguments have been checked."""
    with closing(window):
        for index, row, result in window.run(rows, ordered=ordered):
            if isinstance(result, IdeficsError) and error_policy.on_error == "raise":
                result.args = (f"row {index + 1}: {result}", *result.args[1:])
                raise result
            yield MapResult(index, row, error_policy.return_or_raise(index, result))
