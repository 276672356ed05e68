"""The rule for fields that the server does not use: which of their values it ignores, and which it refuses.

Clients send many fields of OpenAI's API and of other servers (vLLM, TGI, llama.cpp) with default values. A value that
does not change what the server does is ignored. Any other value could change the answer, so it is refused, with a hint.

1. `null` is the same as leaving a field out, whatever its name.
2. A field in a table of `ignored_field_tables.py` is ignored with the values listed there, and with no others.
3. Any other unknown field is ignored if its value is `[]` or `{}`.
4. All other unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EMPTY_VALUES: tuple[Any, ...] = (None, [], {})


@dataclass(frozen=True, slots=True)
class IgnoredField:
    """Values of a field that the server ignores. The server may use the field with other values.

    Attributes:
        ignored_values: the values, in addition to `null`; None: all values, since none could change the answer.
        hint: what to do instead, for requests with other values; a clause without a full stop.
    """

    ignored_values: tuple[Any, ...] | None = ()
    hint: str = ""

    def is_ignored_value(self, value: Any) -> bool:
        """Whether the server ignores a value. `1` and `true` are different values in JSON."""
        return (
            value is None
            or self.ignored_values is None
            or any(_is_same_json_value(value, one) for one in self.ignored_values)
        )


IgnoredFields = Mapping[str, IgnoredField]

ANY_VALUE = IgnoredField(None)


def ignore_values(*values: Any, hint: str = "") -> IgnoredField:
    """A field of which only these values are ignored; `hint` as in `IgnoredField`."""
    return IgnoredField(values, hint)


def is_ignored_field(
    name: str, value: Any, ignored_fields: IgnoredFields, *, is_optional_field: bool
) -> bool:
    """Whether a field is ignored by the rule above.

    Args:
        name, value: the field, as parsed from JSON.
        ignored_fields: the table for the object that has the field.
        is_optional_field: whether the server uses a field of that name, and it is optional.
    """
    if name in ignored_fields:
        return ignored_fields[name].is_ignored_value(value)
    return value is None or (
        not is_optional_field and any(_is_same_json_value(value, one) for one in EMPTY_VALUES)
    )


def _is_same_json_value(value: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where `1` and `true` differ."""
    return isinstance(value, bool) is isinstance(other, bool) and bool(value == other)
