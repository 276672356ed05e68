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

NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def public(function: F, name: str = "", called_as: Signature | None = None) -> F:
    """The same function, which refuses arguments that it does not have.

    Args:
        function: a function, or a method under `@classmethod`.
        name: as people call it; its own by default.
        called_as: its signature where that says more than the function's own; what `help` shows.

    Raises:
        UnknownArgument: from the call: a keyword that the signature does not have.
        BadCall: from the call: an argument is missing, or there are too many.
    """
    said, shown = name or function.__name__, called_as or signature(function)
    known = [
        one.name for one in shown.parameters.values() if one.kind in NAMED and one.name not in ("self", "cls")
    ]

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        if unknown := keywords.keys() - known:
            raise UnknownArgument(f"{said}()", sorted(unknown), known)
        try:
            return function(*args, **keywords)
        except IdeficsError as error:
            log.debug("%s() raises %s", said, type(error).__name__)  # its text may hold what was said
            raise
        except TypeError:
            if why := _misfit(shown, args, keywords):  # else it comes from within
                raise BadCall(f"{said}(): {why}: call it {_usage(said, shown)}") from None
            raise

    if called_as is not None:
        call.__signature__ = called_as  # type: ignore[attr-defined]  # which `inspect` reads first
    return cast("F", call)


def checked_fields(record: type[T]) -> type[T]:
    """A dataclass whose constructor refuses what it has no fields for; goes above `@dataclass`."""
    record.__init__ = public(record.__init__, record.__name__)  # type: ignore[method-assign]  # on purpose
    return record


def _misfit(shown: Signature, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """Why arguments do not fit a signature, or nothing where they do."""
    try:
        shown.bind(*args, **keywords)
    except TypeError as error:
        return str(error)
    return ""


def _usage(name: str, shown: Signature) -> str:
    """`ask(image, question, ...)`."""
    needed = [
        one.name if one.kind is not Parameter.KEYWORD_ONLY else f"{one.name}=..."
        for one in shown.parameters.values()
        if one.default is Parameter.empty and one.kind in NAMED and one.name not in ("self", "cls")
    ]
    return f"{name}({', '.join([*needed, '...'])})"


def checked_text(name: str, value: object, such_as: str, *, blank: bool = False) -> str:
    """The words of a call: one text.

    Args:
        blank: whether there may be nothing in it.

    Raises:
        BadPrompt: it is something else, or blank.
    """
    if isinstance(value, str):
        if not value.isascii():
            whole_characters(name, value)
        if not blank and not value.strip():
            raise BadPrompt(f"the {name} is empty: give one, such as {such_as!r}")
        return value
    if isinstance(value, (list, tuple)):
        raise BadPrompt(
            f"{name} is a list of {len(value)}; give one text, which is asked about every picture, "
            "and call once for each text"
        )
    raise BadPrompt(f"{name} is {short(value)}; give a text, such as {such_as!r}")


def whole_characters(name: str, text: str) -> None:
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


def checked_flag(name: str, value: object) -> bool:
    """An argument that is True or False.

    Raises:
        BadSetting: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise BadSetting(f"{name} is {short(value)}; give True or False")


def one_of(name: str, value: object, words: Sequence[str]) -> None:
    """Checks a word.

    Raises:
        BadSetting: it is none of `words`.
    """
    if not isinstance(value, str) or value not in words:
        raise BadSetting(f"{name} is {short(value)}; give {', '.join(words[:-1])} or {words[-1]}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Checks a number, which is a whole one where `low` is.

    Raises:
        BadSetting: it is something else, or not from `low` to `high`.
    """
    kind, called = (int, "whole number") if isinstance(low, int) else ((int, float), "number")
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise BadSetting(f"{name} is {value!r}; give a {called} from {low} to {high}")


def in_order(
    name: str,
    value: Any,
    wanted: str,
    *,
    unordered: bool = False,
    error: type[BadRequest] = BadSetting,
) -> list[Any]:
    """The items of an argument that is a list, a tuple, a view of a dict, or a generator.

    Args:
        wanted: what it should be: "a list of texts".
        unordered: that their order changes nothing; a set is then sorted.
        error: what is raised.

    Raises:
        BadRequest: a set, whose order would differ from run to run; a dict, a text, or what has no items.
    """
    if isinstance(value, Set) and not isinstance(value, KeysView):
        if unordered:
            return sorted(value, key=str)
        raise error(f"{name} is {kind_of(value)}, which has no fixed order: give a list, or sorted({name})")
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise error(f"{name} is {short(value)}; give {wanted}")
    return list(value)


def kind_of(value: object) -> str:
    """What a value is, in a sentence: "None", "a list", "an int"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def short(value: object, most: int = 80) -> str:
    """A value as Python writes it, on one line, cut where it is long."""
    said = repr(value)
    if "\n" in said:  # arrays and tables
        said = " ".join(said.split())
    return said if len(said) <= most else f"{said[:most]}..."
