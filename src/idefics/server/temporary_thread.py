"""Runs a function that needs much memory for a short time, and returns that memory to the system."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import TypeVar

R = TypeVar("R")


def run_in_thread_and_trim(function: Callable[[], R], should_trim: Callable[[], bool]) -> R:
    """Calls a function in a new thread, and returns its result.

    glibc keeps memory that a thread has freed for that thread, and returns the rest only on request: without this,
    tokenizing a text of a megabyte would leave the process 40 to 130 MB larger.

    Args:
        should_trim: called afterwards; whether to return freed memory now, which may make other threads wait.
    """
    futures: list[Future[R]] = [Future()]
    thread = threading.Thread(target=_run_into_future, args=(function, futures[0]), name="idefics-long-text")
    thread.start()
    thread.join()
    if should_trim() and (trim := _malloc_trim()) is not None:
        trim(0)
    return futures.pop().result()  # keeps no reference to the future: see `_run_into_future`


def _run_into_future(function: Callable[[], R], future: Future[R]) -> None:
    """Calls a function and sets its result or its exception as the future's."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
        del (
            future
        )  # the error refers to this frame: with the future in it, a cycle would keep all texts alive


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3) as a function; None with other C libraries, such as musl, which lack it."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
