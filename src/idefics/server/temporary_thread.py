"""Work that uses much memory for a moment, which goes back to the system afterwards."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import TypeVar

R = TypeVar("R")


def run_in_temporary_thread(function: Callable[[], R], should_trim: Callable[[], bool]) -> R:
    """What `function` returns, computed in a thread of its own; `should_trim` says afterwards whether to give memory back now.

    glibc keeps what a thread has freed for that thread, and gives back the rest only when it is told to: tokenizing a
    text of a megabyte would make a process 40 to 130 MB larger for good. While it gives back, other threads may wait.
    """
    futures: list[Future[R]] = [Future()]
    thread = threading.Thread(target=_run_into_future, args=(function, futures[0]), name="idefics-long-text")
    thread.start()
    thread.join()
    if should_trim() and (trim := _malloc_trim()) is not None:
        trim(0)
    return futures.pop().result()  # no name is left for it: see `_run`


def _run_into_future(function: Callable[[], R], future: Future[R]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
        del future  # the error holds this frame: with the outcome in it, it would hold itself, and all texts


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); other C libraries, such as musl's, do not have it."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
