"""Prompts are made on worker threads while the model works: pictures are decoded, resized and cut there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], items: Sequence[T]) -> Generator[R]:
    """`map(make, items)`, a few made ahead, in order. An error is raised in its place, and nothing more is made."""
    if len(items) == 1:
        yield make(items[0])
        return
    making: deque[Future[R]] = deque()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="idefics-prepare") as pool:
        try:
            for item in items:
                making.append(pool.submit(make, item))
                if len(making) > WORKERS:  # one for each worker, and one that is ready
                    yield making.popleft().result()
            while making:
                yield making.popleft().result()
        finally:
            for future in making:
                future.cancel()
