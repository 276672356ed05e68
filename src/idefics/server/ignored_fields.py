"""The rule for fields that the server does not use: which of their values it ignores, and which it refuses.

Clients send many fields of OpenAI's API and of other servers (vLLM, TGI, llama.cpp) with default values. A value that
does not change what the server does is ignored. Any other value could change the answer, so it is refused, with a hint.

1. `null` is the same as leaving a field out, whatever its name.
2. A field in the table of its object (see `ignored_field_tables.py`) is ignored with the values listed there, and with no others.
3. Any other unknown field is ignored if its value is `[]` or `{}`.
4. All other unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            or any(
                isinstance(value, bool) is isinstance(one, bool) and value == one
                for one in self.ignored_values
            )
        )


IgnoredFields = Mapping[str, IgnoredField]


# Fields that no table has: those that the server uses, and all others.
USED_FIELD, UNKNOWN_FIELD = IgnoredField(), IgnoredField(EMPTY_VALUES)


def make_field_table(
    *tables: IgnoredFields,
    any_value: Sequence[str] = (),
    default_only: Mapping[str, Any] = {},
    values_or_hint: Mapping[str, Sequence[Any]] = {},
    null_or_hint: Mapping[str, str] = {},
) -> IgnoredFields:
    """A table with the fields of other tables and further ones. `null` is ignored in each field.

    Args:
        tables: the other tables, whose fields the further ones replace.
        any_value: fields that are ignored with any value.
        default_only: fields that are ignored with one value.
        values_or_hint: a hint for each field, followed by the values with which it is ignored.
        null_or_hint: hints for fields that are not ignored with any other value.
    """
    return {
        **{name: row for table in tables for name, row in table.items()},
        **dict.fromkeys(any_value, IgnoredField(None)),
        **{name: IgnoredField((value,)) for name, value in default_only.items()},
        **{name: IgnoredField((*values,), hint) for name, (hint, *values) in values_or_hint.items()},
        **{name: IgnoredField((), hint) for name, hint in null_or_hint.items()},
    }
