"""Lets in what does not come as a request of the API: the page, whose answers are written in threads of the app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import anyio.from_thread

from idefics.errors import IdeficsError
from idefics.server.admission import Admission, Place
from idefics.server.faults import Fault

T = TypeVar("T")


@contextmanager
def admitted(admission: Admission, end: Callable[[], None], pictures: int, tokens: int) -> Iterator[None]:
    """Takes a place among the requests for as long as the block lasts.

    Args:
        end: stops what goes on, when the server goes down.

    Raises:
        IdeficsError: there is no room.
    """
    try:
        place = _on_loop(partial(_enter, admission, end, pictures, tokens))
    except Fault as fault:
        raise IdeficsError(fault.message) from None
    try:
        yield
    finally:
        _on_loop(partial(admission.leave, place))


def _enter(admission: Admission, end: Callable[[], None], pictures: int, tokens: int) -> Place:
    place = admission.enter(end)
    try:
        admission.take(place, pictures=pictures, tokens=tokens)
    except Fault:
        admission.leave(place)
        raise
    return place


def _on_loop(work: Callable[[], T]) -> T:
    """Does it where the event loop runs: from a thread that the loop waits for, or there already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.from_thread.run_sync(work)
    return work()
