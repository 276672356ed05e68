"""Prompts are made on worker threads while the model works: pictures are decoded, resized and cut there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TypeVar

from idefics.engine.request import Deadline
from idefics.errors import IdeficsError, RequestTimeout
from idefics.generation.error_policy import result_or_error

NUM_WORKERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def prefetch_map(
    function: Callable[[T], R], items: Sequence[T], deadline: Deadline | None = None
) -> Generator[R | IdeficsError]:
    """What `function` gives for each item, or the error of ours that it raises; a few made ahead, in order.

    Args:
        deadline: until when results are waited for. What is still being made then is left behind, and a
            RequestTimeout stands in its place.
    """
    if len(items) == 1 and deadline is None:
        yield result_or_error(function, items[0])
        return
    pending: deque[Future[R | IdeficsError]] = deque()
    pool = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="idefics-prepare")
    try:
        for item in items:
            pending.append(pool.submit(result_or_error, function, item))
            if len(pending) > NUM_WORKERS:  # one for each worker, and one that is ready
                yield _wait_for_result(pending.popleft(), deadline)
        while pending:
            yield _wait_for_result(pending.popleft(), deadline)
    finally:
        pool.shutdown(wait=deadline is None, cancel_futures=True)


def call_with_deadline(function: Callable[[T], R], item: T, deadline: Deadline | None = None) -> R:
    """What `function` gives for one item.

    Raises:
        RequestTimeout: it was not there in time.
    """
    with closing(prefetch_map(function, [item], deadline)) as results:
        result = next(results)
    if isinstance(result, IdeficsError):
        raise result
    return result


def _wait_for_result(future: Future[R | IdeficsError], deadline: Deadline | None) -> R | IdeficsError:
    if deadline is not None and not wait((future,), deadline.remaining_seconds).done:
        return RequestTimeout(deadline.timeout)
    return future.result()
