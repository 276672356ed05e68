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


def in_fresh_thread(work: Callable[[], R]) -> R:
    """What `work` returns, computed in a thread of its own, whose memory is given back when it has ended.

    glibc keeps what a thread has freed for that thread, and gives back the rest only when it is told to: tokenizing a
    text of a megabyte would make a process 40 to 130 MB larger for good.
    """
    outcome: Future[R] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="idefics-long-text")
    thread.start()
    thread.join()
    if (trim := _malloc_trim()) is not None:
        trim(0)
    return outcome.result()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); other C libraries, such as musl's, do not have it."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
