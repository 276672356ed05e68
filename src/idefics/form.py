"""What an answer has to look like: a form, as people ask for it. No torch, and nothing that holds an answer to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics.calls import in_order, short, whole_characters
from idefics.errors import BadSetting


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """What an answer has to look like: one of the three. Two are equal that read the same.

    Attributes:
        regex: a regular expression for the whole answer, in Rust's dialect: nothing that looks around or back; a digit
            is one of 0 to 9.
        choices: texts, one of which is the answer.
        schema: a JSON schema; `{"type": "object"}` is any object. Keywords that cannot be held to are refused.

    Raises:
        BadSetting: none or several are given, or one is of the wrong type.
    """

    regex: str | None = None
    choices: Sequence[str] | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in self._all().items() if value is not None}
        if len(given) != 1:
            raise BadSetting(
                f"an answer has one form, not {len(given)}: give one of {', '.join(self._all())}"
            )
        if self.regex is not None and not (isinstance(self.regex, str) and self.regex):
            raise BadSetting(
                f"regex is {self.regex!r}; give a regular expression, such as r'\\d+ (cats|dogs)'"
            )
        if self.regex is not None:
            whole_characters("regex", self.regex)
        if self.choices is not None:
            choices = in_order(
                "choices", self.choices, "a list of texts, such as ['yes', 'no']", unordered=True
            )
            if not choices or not all(isinstance(choice, str) and choice for choice in choices):
                raise BadSetting(
                    f"choices is {short(self.choices)}; give a list of texts, such as ['yes', 'no']"
                )
            for choice in choices:
                whole_characters("choices", choice)
            object.__setattr__(self, "choices", choices)  # a generator gives its texts once
        if self.schema is not None:
            _check_json(self.schema)

    @classmethod
    def of(
        cls,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Form | None:
        """The form that is asked for, if one is."""
        if regex is None and choices is None and schema is None:
            return None
        return cls(regex=regex, choices=choices, schema=schema)

    @property
    def name(self) -> str:
        """Which of the three it is."""
        return next(name for name, value in self._all().items() if value is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return json.dumps(self._all())  # the order of a schema's properties is that of the answer

    def _all(self) -> dict[str, Any]:
        return {"regex": self.regex, "choices": self.choices, "schema": self.schema}


def _check_json(schema: object) -> None:
    if not isinstance(schema, Mapping):
        raise BadSetting(f"schema is {schema!r}; give a JSON schema as a dict, such as {{'type': 'object'}}")
    try:
        json.dumps(dict(schema))
    except (TypeError, ValueError) as error:
        raise BadSetting(f"schema is not JSON ({error}): give dicts, lists, texts and numbers") from None
