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
from idefics.pipeline.failures import attempt

WORKERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    make: Callable[[T], R], items: Sequence[T], deadline: Deadline | None = None
) -> Generator[R | IdeficsError]:
    """What `make` gives for each item, or the error of ours that it raises; a few made ahead, in order.

    Args:
        deadline: until when results are waited for. What is still being made then is left behind, and a
            RequestTimeout stands in its place.
    """
    if len(items) == 1 and deadline is None:
        yield attempt(make, items[0])
        return
    making: deque[Future[R | IdeficsError]] = deque()
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="idefics-prepare")
    try:
        for item in items:
            making.append(pool.submit(attempt, make, item))
            if len(making) > WORKERS:  # one for each worker, and one that is ready
                yield _made(making.popleft(), deadline)
        while making:
            yield _made(making.popleft(), deadline)
    finally:
        pool.shutdown(wait=deadline is None, cancel_futures=True)


def made(make: Callable[[T], R], item: T, deadline: Deadline | None = None) -> R:
    """What `make` gives for one item.

    Raises:
        RequestTimeout: it was not there in time.
    """
    with closing(ahead(make, [item], deadline)) as results:
        result = next(results)
    if isinstance(result, IdeficsError):
        raise result
    return result


def _made(future: Future[R | IdeficsError], deadline: Deadline | None) -> R | IdeficsError:
    if deadline is not None and not wait((future,), deadline.remaining).done:
        return RequestTimeout(deadline.seconds)
    return future.result()
