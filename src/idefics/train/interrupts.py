"""Signals that end a training: what is in hand is finished, and what was learned is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.train.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """Context in which SIGINT or SIGTERM ends training after the current step; a second SIGINT interrupts at once.

    A second SIGTERM does not: programs that start several processes send one after the SIGINT of a terminal.
    """
    interrupt = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stops = True
        for listener in trainer.listeners:
            listener.on_stop()
        if number == signal.SIGINT:
            signal.signal(number, interrupt)

    with _handle_signals(stop):
        yield


@contextmanager
def finish_writing(trainer: Trainer) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM end training after it: what is written is written to the end."""

    def note(number: int, frame: FrameType | None) -> None:
        trainer.stops = True
        for listener in trainer.listeners:
            listener.on_stop_while_writing()

    with _handle_signals(note):
        yield


@contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context with a handler of SIGINT and SIGTERM; it does nothing outside the main thread, which alone has them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, one in previous.items():
            signal.signal(number, one)
