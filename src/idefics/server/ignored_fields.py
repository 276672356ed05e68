"""Fields that this server does not use, and which values of them ask for nothing.

Clients send many fields of OpenAI's API and of other servers (vLLM, TGI, llama.cpp) with values that mean "nothing", or
what this server does anyway. Such a value is accepted and ignored. Any other value could change the answer, so that the
request is refused, with the nearest way to what was meant.

1. `null` is the same as leaving a field out, whatever its name.
2. A field of the tables in `neutral_fields.py` may have the values that stand there: they decide alone.
3. `[]` and `{}` of any other unknown field ask for nothing.
4. Everything else that is unknown is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EMPTY_VALUES: tuple[Any, ...] = (None, [], {})


@dataclass(frozen=True, slots=True)
class IgnoredField:
    """A field, or special values of one that is used, which the server ignores.

    Attributes:
        ignored_values: the values that are ignored, beside `null`; None: all are, since no value could change the answer.
        hint: what to do where another value was meant to have an effect; a clause, without a full stop.
    """

    ignored_values: tuple[Any, ...] | None = ()
    hint: str = ""

    def is_ignored_value(self, value: Any) -> bool:
        """Whether a value asks for nothing. JSON's `1` and `true` are different values."""
        return (
            value is None
            or self.ignored_values is None
            or any(_is_same_json_value(value, one) for one in self.ignored_values)
        )


IgnoredFields = Mapping[str, IgnoredField]

ANY_VALUE = IgnoredField(None)


def ignore_values(*values: Any, hint: str = "") -> IgnoredField:
    """A field that may have these values."""
    return IgnoredField(values, hint)


def is_ignored_field(
    name: str, value: Any, ignored_fields: IgnoredFields, *, is_optional_field: bool
) -> bool:
    """Whether a field asks for nothing, as the rules at the top of this file say.

    Args:
        name, value: the field, as JSON has it.
        ignored_fields: the table of the object that it is in.
        is_optional_field: whether the object has a field of that name that may be left out.
    """
    if name in ignored_fields:
        return ignored_fields[name].is_ignored_value(value)
    return value is None or (
        not is_optional_field and any(_is_same_json_value(value, one) for one in EMPTY_VALUES)
    )


def _is_same_json_value(value: Any, other: Any) -> bool:
    return isinstance(value, bool) is isinstance(other, bool) and bool(value == other)
