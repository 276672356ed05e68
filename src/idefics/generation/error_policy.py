"""Errors about one of several inputs of a call: raised with the number of the input, or returned in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from idefics.errors import BadSetting, IdeficsError
from idefics.options import ON_ERROR_CHOICES, OnError
from idefics.validation import validate_bool, validate_choice

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What one call does about errors.

    Args:
        input_name: what an input is called, such as "picture".
        num_inputs: how many inputs there are; 0 where the call was given one and no list.
        on_error: the keyword of the call.
        stream: that of the call, with which errors can only be raised.

    Raises:
        BadSetting: `on_error` is another word, or goes with a stream.
    """

    input_name: str
    num_inputs: int
    on_error: OnError
    stream: bool = False

    def __post_init__(self) -> None:
        validate_choice("on_error", self.on_error, ON_ERROR_CHOICES)
        if validate_bool("stream", self.stream) and self.on_error == "return":
            raise BadSetting(
                "on_error='return' does not go with stream=True: a stream raises where it is read"
            )

    def call_or_error(self, index: int, function: Callable[[], T]) -> T | IdeficsError:
        """What `function` gives for the input of a number, counted from 0, or the error that it raises."""
        try:
            return function()
        except IdeficsError as error:
            return self.return_or_raise(index, error)

    def return_or_raise(self, index: int, result: T | IdeficsError) -> T | IdeficsError:
        """A result, or an error to return. Raises the error instead where the caller has not asked for it."""
        if not isinstance(result, IdeficsError):
            return result
        if self.on_error == "return":
            result.__context__ = result.__cause__ = None  # their frames, and its own, would keep the pictures
            return result.with_traceback(None)
        if not self.num_inputs:
            raise result
        numbered = copy.copy(result)
        numbered.args = (f"{self.input_name} {index + 1} of {self.num_inputs}: {result}", *result.args[1:])
        raise numbered.with_traceback(result.__traceback__) from None


def result_or_error(function: Callable[[T], R], item: T) -> R | IdeficsError:
    """What `function` gives for an item, or the error of ours that it raises."""
    try:
        return function(item)
    except IdeficsError as error:
        return error
