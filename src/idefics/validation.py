"""Wrong calls of public functions: refused in the package's own words, with the nearest name that there is.

Python's words for a wrong call name internals, and its `TypeError` is not an `IdeficsError`. Knows no pictures.
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
    """The same function, which refuses arguments that it does not have.

    Args:
        function: a function, or a method under `@classmethod`.
        name: as people call it; its own by default.
        display_signature: its signature where that says more than the function's own; what `help` shows.

    Raises:
        UnknownArgument: from the call: a keyword that the signature does not have.
        BadCall: from the call: an argument is missing, or there are too many.
    """
    call_name, call_signature = name or function.__name__, display_signature or signature(function)
    keyword_names = [
        one.name
        for one in call_signature.parameters.values()
        if one.kind in KEYWORD_KINDS and one.name not in ("self", "cls")
    ]

    @wraps(function)
    def checked_call(*args: Any, **keywords: Any) -> Any:
        if unknown := keywords.keys() - keyword_names:
            raise UnknownArgument(f"{call_name}()", sorted(unknown), keyword_names)
        try:
            return function(*args, **keywords)
        except IdeficsError as error:
            log.debug("%s() raises %s", call_name, type(error).__name__)  # its text may hold what was said
            raise
        except TypeError:
            if mismatch := _signature_mismatch(call_signature, args, keywords):  # else it comes from within
                raise BadCall(
                    f"{call_name}(): {mismatch}: call it {_format_usage(call_name, call_signature)}"
                ) from None
            raise

    if display_signature is not None:
        checked_call.__signature__ = display_signature  # type: ignore[attr-defined]  # which `inspect` reads first
    return cast("F", checked_call)


def reject_unknown_fields(record: type[T]) -> type[T]:
    """A dataclass whose constructor refuses what it has no fields for; goes above `@dataclass`."""
    record.__init__ = reject_unknown_arguments(record.__init__, record.__name__)  # type: ignore[method-assign]  # on purpose
    return record


def _signature_mismatch(call_signature: Signature, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """Why arguments do not fit a signature, or nothing where they do."""
    try:
        call_signature.bind(*args, **keywords)
    except TypeError as error:
        return str(error)
    return ""


def _format_usage(name: str, call_signature: Signature) -> str:
    """`ask(image, question, ...)`."""
    required = [
        one.name if one.kind is not Parameter.KEYWORD_ONLY else f"{one.name}=..."
        for one in call_signature.parameters.values()
        if one.default is Parameter.empty and one.kind in KEYWORD_KINDS and one.name not in ("self", "cls")
    ]
    return f"{name}({', '.join([*required, '...'])})"


def validate_text(name: str, value: object, example: str, *, allow_blank: bool = False) -> str:
    """The words of a call: one text.

    Args:
        allow_blank: whether there may be nothing in it.

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
    """Refuses half of a character, which no tokenizer reads.

    Raises:
        BadPrompt: the text has a lone surrogate: what was no UTF-8 where it was read, or half of a JSON escape.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(
            f"{name} has half of a character ({text[error.start]!r}, a lone surrogate): give whole ones"
        ) from None


def validate_bool(name: str, value: object) -> bool:
    """An argument that is True or False.

    Raises:
        BadSetting: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise BadSetting(f"{name} is {short_repr(value)}; give True or False")


def validate_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks a word.

    Raises:
        BadSetting: it is none of `choices`.
    """
    if not isinstance(value, str) or value not in choices:
        raise BadSetting(f"{name} is {short_repr(value)}; give {', '.join(choices[:-1])} or {choices[-1]}")


def validate_range(name: str, value: float, low: float, high: float) -> None:
    """Checks a number, which is a whole one where `low` is.

    Raises:
        BadSetting: it is something else, or not from `low` to `high`.
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
    """The items of an argument that is a list, a tuple, a view of a dict, or a generator.

    Args:
        expected: what it should be: "a list of texts".
        allow_set: that their order changes nothing; a set is then sorted.
        error_type: what is raised.

    Raises:
        BadRequest: a set, whose order would differ from run to run; a dict, a text, or what has no items.
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
    """What a value is, in a sentence: "None", "a list", "an int"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def short_repr(value: object, max_characters: int = 80) -> str:
    """A value as Python writes it, on one line, cut where it is long."""
    text = repr(value)
    if "\n" in text:  # arrays and tables
        text = " ".join(text.split())
    return text if len(text) <= max_characters else f"{text[:max_characters]}..."
