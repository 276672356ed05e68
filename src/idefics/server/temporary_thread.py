"""Runs a function that needs much memory for a short time, and returns that memory to the system."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    with ThreadPoolExecutor(1, thread_name_prefix="idefics-long-text") as executor:
        future = executor.submit(function)
    try:
        if should_trim() and (trim := _malloc_trim()) is not None:
            trim(0)
        return future.result()
    finally:
        del future  # an error refers to this frame: with the future in it, a cycle would keep all texts alive


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3) as a function; None with other C libraries, which lack it."""
    return ctypes.CDLL(None).malloc_trim if platform.libc_ver()[0] == "glibc" else None
