"""Makes prompts on worker threads (decoding, resizing and tiling pictures) while the engine generates."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, TypeVar

from idefics.engine.request import Deadline
from idefics.errors import IdeficsError, RequestTimeout
from idefics.generation.error_policy import result_or_error

NUM_WORKERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def prefetch_map(
    function: Callable[[Any], R], items: Sequence[Any], deadline: Deadline | None = None
) -> Generator[R | IdeficsError]:
    """Maps `function` over `items` on worker threads, in order and at most a few items ahead of the consumer.

    A single item without a deadline is computed in the calling thread.

    Args:
        function: called once for each item that is no error.
        items: the inputs; an error in the place of one is its result.
        deadline: when to stop waiting for a result; None waits without limit.

    Yields:
        For each item the function's result or the `IdeficsError` that it raised; after the deadline, a
        `RequestTimeout` for each result that is not ready.
    """
    if len(items) == 1 and deadline is None:
        yield result_or_error(function, items[0])
        return
    pending: deque[Future[R | IdeficsError]] = deque()
    pool = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="idefics-prepare")
    try:
        for item in items:
            pending.append(pool.submit(result_or_error, function, item))
            if len(pending) > NUM_WORKERS:  # one running on each worker, and one that is done
                yield _wait_for_result(pending.popleft(), deadline)
        while pending:
            yield _wait_for_result(pending.popleft(), deadline)
    finally:
        pool.shutdown(wait=deadline is None, cancel_futures=True)


def call_with_deadline(
    function: Callable[[T], R], item: T | IdeficsError, deadline: Deadline | None = None
) -> R:
    """Returns `function(item)`, computed on a worker thread if there is a deadline.

    Raises:
        IdeficsError: what the function raises, or the item is.
        RequestTimeout: the deadline passed before the result was ready.
    """
    with closing(prefetch_map(function, [item], deadline)) as results:
        result = next(results)
    if isinstance(result, IdeficsError):
        raise result
    return result


def _wait_for_result(future: Future[R | IdeficsError], deadline: Deadline | None) -> R | IdeficsError:
    """The result of a future, or a `RequestTimeout` if the deadline passes first."""
    if deadline is not None and not wait((future,), deadline.remaining_seconds).done:
        return RequestTimeout(deadline.timeout)
    return future.result()
