"""The inputs of a call: prompts are made ahead on worker threads, and errors about one input raised or returned.

`prefetch_map` decodes, resizes and tiles pictures while the engine generates. `ErrorPolicy` is the `on_error` argument:
an error about one input is raised with its number, or returned in its place.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from idefics.engine.request import Deadline
from idefics.errors import BadSetting, IdeficsError, RequestTimeout
from idefics.options import ON_ERROR_CHOICES, OnError
from idefics.validation import validate_bool, validate_choice

NUM_WORKERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def prefetch_map(
    function: Callable[[Any], R],
    items: Iterable[Any],
    deadline: Deadline | None = None,
    num_workers: int = NUM_WORKERS,
) -> Generator[R | IdeficsError]:
    """Maps `function` over `items` on worker threads, in order and at most a few items ahead of the consumer.

    The single item of a list is computed in the calling thread, unless there is a deadline.

    Args:
        function: called once for each item that is no error.
        items: the inputs, iterated in the calling thread; an error in the place of one is its result.
        num_workers: how many are computed at once.
        deadline: when to stop waiting for a result; None waits without limit.

    Yields:
        For each item the function's result or the `IdeficsError` that it raised; after the deadline, a
        `RequestTimeout` for each result that is not ready.
    """
    if isinstance(items, Sequence) and len(items) == 1 and deadline is None:
        yield result_or_error(function, items[0])
        return
    pending: deque[Future[R | IdeficsError]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="idefics-prepare")
    try:
        for item in items:
            pending.append(pool.submit(result_or_error, function, item))
            if len(pending) > num_workers:  # one running on each worker, and one that is done
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


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """How one call handles errors about its inputs.

    Args:
        input_name: the word for an input in error messages, such as "picture".
        num_inputs: the number of inputs in the caller's list; 0 if the caller gave one input and not a list.
        on_error: the call's `on_error` argument: "raise" or "return".
        stream: the call's `stream` argument; the errors of a stream can only be raised.

    Raises:
        BadSetting: `on_error` is not one of the two words, or is "return" together with `stream`.
    """

    input_name: str
    num_inputs: int
    on_error: OnError
    stream: bool = False

    def __post_init__(self) -> None:
        validate_choice("on_error", self.on_error, ON_ERROR_CHOICES)
        if validate_bool("stream", self.stream) and self.on_error == "return":
            raise BadSetting(
                "on_error='return' cannot be combined with stream=True: a stream raises errors while it is read"
            )

    def return_or_raise(self, index: int, result: T | IdeficsError) -> T | IdeficsError:
        """Returns a result, and handles an error as `on_error` says: "return" returns it, "raise" raises it.

        Args:
            index: the index of the input in the caller's list; the number in the message of a raised error is one more.
            result: the result for that input, or its error.
        """
        if not isinstance(result, IdeficsError):
            return result
        if self.on_error == "return":
            result.__context__ = result.__cause__ = (
                None  # the frames of their tracebacks would keep pictures in memory
            )
            return result.with_traceback(None)
        if not self.num_inputs:
            raise result
        numbered = copy.copy(result)
        numbered.args = (f"{self.input_name} {index + 1} of {self.num_inputs}: {result}", *result.args[1:])
        raise numbered.with_traceback(result.__traceback__) from None


def result_or_error(function: Callable[[T], R], item: T | IdeficsError) -> R | IdeficsError:
    """Returns `function(item)`; or the `IdeficsError` that it raises; or `item` itself if that is an error."""
    if isinstance(item, IdeficsError):
        return item
    try:
        return function(item)
    except IdeficsError as error:
        return error
