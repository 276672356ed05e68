"""The `on_error` argument: errors about one input of a call are raised with its number, or returned in its place."""

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
        """Returns a result. Returns an error if `on_error` is "return", else raises it with its input's number."""
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
    """Returns `function(item)`, or the `IdeficsError` that it raises, or that the item is."""
    if isinstance(item, IdeficsError):
        return item
    try:
        return function(item)
    except IdeficsError as error:
        return error
