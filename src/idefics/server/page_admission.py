"""Lets in what does not come as a request of the API: the page, whose answers are written in threads of the app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import anyio.from_thread

from idefics.errors import IdeficsError
from idefics.server.admission import AdmissionControl, AdmissionSlot
from idefics.server.errors import APIError

T = TypeVar("T")


@contextmanager
def admission_slot(
    admission: AdmissionControl, cancel: Callable[[], None], num_pictures: int, num_tokens: int
) -> Iterator[None]:
    """Takes a place among the requests for as long as the block lasts.

    Args:
        cancel: stops what goes on, when the server goes down.

    Raises:
        IdeficsError: there is no room.
    """
    try:
        slot = _run_on_event_loop(partial(_acquire_slot, admission, cancel, num_pictures, num_tokens))
    except APIError as fault:
        raise IdeficsError(fault.message) from None
    try:
        yield
    finally:
        _run_on_event_loop(partial(admission.release_slot, slot))


def _acquire_slot(
    admission: AdmissionControl, cancel: Callable[[], None], num_pictures: int, num_tokens: int
) -> AdmissionSlot:
    slot = admission.acquire_slot(cancel)
    try:
        admission.reserve(slot, pictures=num_pictures, tokens=num_tokens)
    except APIError:
        admission.release_slot(slot)
        raise
    return slot


def _run_on_event_loop(function: Callable[[], T]) -> T:
    """Does it where the event loop runs: from a thread that the loop waits for, or there already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.from_thread.run_sync(function)
    return function()
