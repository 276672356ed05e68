"""Validation of the arguments of public functions: wrong ones raise an `IdeficsError` that says what to give instead.

Python's own `TypeError` for a wrong call names internals and is not an `IdeficsError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence, Set
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar, cast

from idefics.errors import BadCall, BadPrompt, BadRequest, BadSetting, IdeficsError, UnknownArgument

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

KEYWORD_KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def reject_unknown_arguments(function: F, name: str = "", display_signature: Signature | None = None) -> F:
    """Decorator: calls with wrong arguments raise UnknownArgument or BadCall instead of TypeError.

    Args:
        function: a function or a method; goes below `@classmethod`.
        name: the function's name in messages; empty: its own.
        display_signature: what calls are checked against and `help` shows; None: the function's own signature.

    Returns:
        The decorated function. Calls of it raise UnknownArgument for a keyword that the signature lacks, and BadCall
        where an argument is missing or there are too many.
    """
    call_name, call_signature = name or function.__name__, display_signature or signature(function)
    keywords_taken = [
        one
        for one in call_signature.parameters.values()
        if one.kind in KEYWORD_KINDS and one.name not in ("self", "cls")
    ]
    keyword_names = [one.name for one in keywords_taken]

    @wraps(function)
    def checked_call(*args: Any, **keywords: Any) -> Any:
        if unknown := keywords.keys() - keyword_names:
            raise UnknownArgument(f"{call_name}()", sorted(unknown), keyword_names)
        try:
            return function(*args, **keywords)
        except IdeficsError as error:
            log.debug("%s() raises %s", call_name, type(error).__name__)  # its text may quote a prompt
            raise
        except TypeError:
            try:
                call_signature.bind(*args, **keywords)
            except TypeError as mismatch:
                required = [
                    one.name if one.kind is not Parameter.KEYWORD_ONLY else f"{one.name}=..."
                    for one in keywords_taken
                    if one.default is Parameter.empty
                ]
                usage = f"{call_name}({', '.join([*required, '...'])})"
                raise BadCall(f"{call_name}(): {mismatch}: call it {usage}") from None
            raise  # it was raised inside the function

    if display_signature is not None:
        checked_call.__signature__ = display_signature  # type: ignore[attr-defined]  # read first by `inspect`
    return cast("F", checked_call)


def reject_unknown_fields(record: type[T]) -> type[T]:
    """Decorator above `@dataclass`: the constructor raises UnknownArgument or BadCall for wrong arguments."""
    record.__init__ = reject_unknown_arguments(record.__init__, record.__name__)  # type: ignore[method-assign]
    return record


def validate_text(name: str, value: object, example: str, *, allow_blank: bool = False) -> str:
    """Returns an argument that must be one text.

    Args:
        name: of the argument.
        example: a valid text, for the message.
        allow_blank: whether it may be empty or white space.

    Raises:
        BadPrompt: it is something else, or blank.
    """
    if isinstance(value, str):
        if not value.isascii():
            reject_lone_surrogates(name, value)
        if not allow_blank and not value.strip():
            raise BadPrompt(f"the {name} is empty: give one, such as {example!r}")
        return value
    if isinstance(value, (list, tuple)):
        raise BadPrompt(
            f"{name} is a list of {len(value)}; give one text, which is asked about every picture, "
            "and call once for each text"
        )
    raise BadPrompt(f"{name} is {short_repr(value)}; give a text, such as {example!r}")


def reject_lone_surrogates(name: str, text: str) -> None:
    """Refuses a text with a lone surrogate, which no tokenizer reads.

    Such texts come from bytes that are not UTF-8, or from half of a JSON escape.

    Raises:
        BadPrompt: the text, the argument `name`, has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(
            f"{name} has half of a character ({text[error.start]!r}, a lone surrogate): give whole ones"
        ) from None


def validate_callback(name: str, value: object) -> None:
    """Raises BadSetting unless a value is None or can be called."""
    if value is not None and not callable(value):
        raise BadSetting(f"{name} is {short_repr(value)}; give a function, or leave it out")


def validate_bool(name: str, value: object) -> bool:
    """Returns an argument that must be True or False.

    Raises:
        BadSetting: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise BadSetting(f"{name} is {short_repr(value)}; give True or False")


def validate_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks an argument that must be one of some words.

    Raises:
        BadSetting: it is none of `choices`.
    """
    if not isinstance(value, str) or value not in choices:
        raise BadSetting(f"{name} is {short_repr(value)}; give {', '.join(choices[:-1])} or {choices[-1]}")


def validate_range(name: str, value: float, low: float, high: float) -> None:
    """Checks a number: low <= value <= high; an int is required where `low` is an int.

    Raises:
        BadSetting: it is something else, or out of range.
    """
    number_types, type_name = (int, "whole number") if isinstance(low, int) else ((int, float), "number")
    if isinstance(value, bool) or not isinstance(value, number_types) or not low <= value <= high:
        raise BadSetting(f"{name} is {value!r}; give a {type_name} from {low} to {high}")


def validate_list(
    name: str,
    value: Any,
    expected: str,
    *,
    allow_set: bool = False,
    error_type: type[BadRequest] = BadSetting,
) -> list[Any]:
    """Returns the items of an argument that must be a list, a tuple, a view of a dict, or a generator.

    Args:
        name: of the argument.
        expected: what it should be, for the message: "a list of texts".
        allow_set: whether the order does not matter; a set is then sorted.
        error_type: the class of the error.

    Raises:
        BadRequest: it is a set, whose order would differ from run to run, a dict, a text, or not iterable.
    """
    if isinstance(value, Set) and not isinstance(value, KeysView):
        if allow_set:
            return sorted(value, key=str)
        raise error_type(
            f"{name} is {describe_type(value)}, which has no fixed order: give a list, or sorted({name})"
        )
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise error_type(f"{name} is {short_repr(value)}; give {expected}")
    return list(value)


def describe_type(value: object) -> str:
    """The type of a value for messages: "None", "a list", "an int"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def short_repr(value: object, max_characters: int = 80) -> str:
    """`repr(value)` on one line, cut after `max_characters`."""
    text = repr(value)
    if "\n" in text:  # arrays and tables
        text = " ".join(text.split())
    return text if len(text) <= max_characters else f"{text[:max_characters]}..."
