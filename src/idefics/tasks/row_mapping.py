"""`RowMappingMixin`: `map`, which runs a task over any number of rows lazily, with a bounded number in hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
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
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack

from idefics.engine.handle import RequestHandle
from idefics.errors import BadSetting, IdeficsError
from idefics.generation.call_inputs import NUM_WORKERS, ErrorPolicy, result_or_error
from idefics.messages import Answer, Ranking
from idefics.options import MapOptions, document_and_check_options
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


class PendingResult(Protocol):
    """A result that the engine is computing: a `Generation` or a `PendingRanking`."""

    @property
    def handle(self) -> RequestHandle:
        """The engine's handle of the request."""
        ...

    def result(self) -> Answer | Ranking:
        """Waits for the result. Raises the error of a request that failed."""
        ...


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
        return MapResults(window, iter(rows), ordered, error_policy)

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

    def __init__(
        self, window: RowWindow, rows: Iterator[Row], ordered: bool, error_policy: ErrorPolicy
    ) -> None:
        self._window = window
        self._results = _iterate_results(window, rows, ordered, error_policy)

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


class RowWindow:
    """The rows in hand: prepared on worker threads, computed by the engine, finished and not read yet.

    Args:
        submit: makes the prompt of a row and submits it; called on worker threads.
        max_rows: how many rows are in the engine at most; a few more are being prepared.
    """

    def __init__(self, submit: Callable[[Any], PendingResult], max_rows: int) -> None:
        self._submit, self._max_rows = submit, max_rows + NUM_WORKERS
        self._pool = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="idefics-prepare")
        self._done: SimpleQueue[tuple[int, PendingResult | BaseException | None]] = SimpleQueue()
        self._rows_in_hand: dict[int, Any] = {}
        self._pending: dict[int, PendingResult] = {}
        self._cancelled = threading.Event()

    def run(
        self, rows: Iterator[Any], *, ordered: bool
    ) -> Iterator[tuple[int, Any, Answer | Ranking | IdeficsError]]:
        """Yields (index, row, result) for each row, where rows are taken one by one as results are read.

        An error of the rows' own iterator is raised after the results of the rows before it.
        """
        num_taken = 0
        results: dict[int, Answer | Ranking | IdeficsError] = {}
        has_rows = True
        row_error: Exception | None = None
        while True:
            while has_rows and not self._cancelled.is_set() and len(self._rows_in_hand) < self._max_rows:
                try:
                    row = next(rows)
                except StopIteration:
                    has_rows = False
                    break
                except Exception as error:  # raised once the rows before it have their results
                    has_rows, row_error = False, error
                    break
                self._rows_in_hand[num_taken] = row
                self._pool.submit(self._start, num_taken, row)
                num_taken += 1
            if not self._rows_in_hand:
                if row_error is not None:
                    raise row_error
                return
            index, result = self._take_result()
            if result is None:
                del self._rows_in_hand[index]
            else:
                results[index] = result
            while results:
                index = next(iter(self._rows_in_hand if ordered else results))
                if index not in results:
                    break
                yield index, self._rows_in_hand.pop(index), results.pop(index)

    def _start(self, index: int, row: Any) -> None:
        """Prepares and submits a row; its number is put into the queue once it is done. Runs in a worker thread."""
        if self._cancelled.is_set():
            self._done.put((index, None))
            return
        try:
            pending = self._submit(row)
        except BaseException as error:
            self._done.put((index, error))
            return
        self._pending[index] = pending
        if self._cancelled.is_set():
            pending.handle.cancel()
        pending.handle.call_when_done(partial(self._done.put, (index, pending)))

    def _take_result(self) -> tuple[int, Answer | Ranking | IdeficsError | None]:
        """Waits for the next row that is done; None for one that was never submitted.

        Raises an error that is not about its row.
        """
        index, pending = self._done.get()
        self._pending.pop(index, None)
        if pending is None or isinstance(pending, IdeficsError):
            return index, pending
        if isinstance(pending, BaseException):
            raise pending
        return index, result_or_error(lambda one: one.result(), pending)

    def cancel(self) -> None:
        """Cancels the rows in hand, from any thread."""
        self._cancelled.set()
        for pending in list(self._pending.values()):
            pending.handle.cancel()

    def close(self) -> None:
        """Cancels the rows in hand. Returns once no row is being prepared any more."""
        self.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
