"""Errors about one of several inputs of a call: raised with the number of the input, or returned in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from idefics.calls import checked_flag, one_of
from idefics.errors import BadSetting, IdeficsError
from idefics.options import ON_ERROR, OnError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failures:
    """What one call does about errors.

    Args:
        noun: what an input is called, such as "picture".
        total: how many inputs there are; 0 where the call was given one and no list.
        on_error: the keyword of the call.
        stream: that of the call, with which errors can only be raised.

    Raises:
        BadSetting: `on_error` is another word, or goes with a stream.
    """

    noun: str
    total: int
    on_error: OnError
    stream: bool = False

    def __post_init__(self) -> None:
        one_of("on_error", self.on_error, ON_ERROR)
        if checked_flag("stream", self.stream) and self.on_error == "return":
            raise BadSetting(
                "on_error='return' does not go with stream=True: a stream raises where it is read"
            )

    def attempt(self, index: int, work: Callable[[], T]) -> T | IdeficsError:
        """What `work` gives for the input of a number, counted from 0, or the error that it raises."""
        try:
            return work()
        except IdeficsError as error:
            return self.resolved(index, error)

    def resolved(self, index: int, result: T | IdeficsError) -> T | IdeficsError:
        """A result, or an error to return. Raises the error instead where the caller has not asked for it."""
        if not isinstance(result, IdeficsError):
            return result
        if self.on_error == "return":
            result.__context__ = result.__cause__ = None  # their frames, and its own, would keep the pictures
            return result.with_traceback(None)
        if not self.total:
            raise result
        named = copy.copy(result)
        named.args = (f"{self.noun} {index + 1} of {self.total}: {result}", *result.args[1:])
        raise named.with_traceback(result.__traceback__) from None


def attempt(make: Callable[[T], R], item: T) -> R | IdeficsError:
    """What `make` gives for an item, or the error of ours that it raises."""
    try:
        return make(item)
    except IdeficsError as error:
        return error
