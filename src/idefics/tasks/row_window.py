"""`RowWindow`: the rows of a `map` that are in hand, from being prepared to being read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from idefics.engine.handle import RequestHandle
from idefics.errors import IdeficsError
from idefics.generation.call_inputs import NUM_WORKERS, result_or_error
from idefics.messages import Answer, Ranking


class PendingResult(Protocol):
    """A result that the engine is computing: a `Generation` or a `PendingRanking`."""

    @property
    def handle(self) -> RequestHandle:
        """The engine's handle of the request."""
        ...

    def result(self) -> Answer | Ranking:
        """Waits for the result. Raises the error of a request that failed."""
        ...


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
