"""Structured output as callers request it; `processing.structured_output` enforces it. Plain data, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics.errors import BadSetting
from idefics.validation import reject_lone_surrogates, short_repr, validate_list


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputConstraint:
    """What the whole answer must match: a regular expression, one of some texts, or a JSON schema; exactly one is set.

    Attributes:
        regex: a regular expression in Rust's dialect: no look-around, no backreferences; `\\d` is 0 to 9.
        choices: texts, one of which is the answer.
        schema: a JSON schema; `{"type": "object"}` is any object. Keywords that cannot be enforced are refused.

    Raises:
        BadSetting: none or several are given, or one is of the wrong type.
    """

    regex: str | None = None
    choices: Sequence[str] | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise BadSetting(
                f"an answer has one constraint, not {len(given)}: give one of {', '.join(vars(self))}"
            )
        if self.regex is not None and not (isinstance(self.regex, str) and self.regex):
            raise BadSetting(
                f"regex is {self.regex!r}; give a regular expression, such as r'\\d+ (cats|dogs)'"
            )
        if self.regex is not None:
            reject_lone_surrogates("regex", self.regex)
        if self.choices is not None:
            expected = "a list of texts, such as ['yes', 'no']"
            choices = validate_list("choices", self.choices, expected, allow_set=True)
            if not choices or not all(isinstance(choice, str) and choice for choice in choices):
                raise BadSetting(f"choices is {short_repr(self.choices)}; give {expected}")
            for choice in choices:
                reject_lone_surrogates("choices", choice)
            object.__setattr__(self, "choices", choices)  # a generator gives its texts once
        schema: object = self.schema  # its keywords are checked when it is compiled
        if schema is not None and not isinstance(schema, Mapping):
            raise BadSetting(
                f"schema is {schema!r}; give a JSON schema as a dict, such as {{'type': 'object'}}"
            )
        try:
            json.dumps(dict(schema or {}))
        except (TypeError, ValueError) as error:
            raise BadSetting(f"schema is not JSON ({error}): give dicts, lists, texts and numbers") from None

    @classmethod
    def from_options(
        cls,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> OutputConstraint | None:
        """The constraint of the one option that is not None, or None if all are."""
        if regex is None and choices is None and schema is None:
            return None
        return cls(regex=regex, choices=choices, schema=schema)

    @property
    def kind(self) -> str:
        """The option that is set: "regex", "choices" or "schema"."""
        return next(name for name, value in vars(self).items() if value is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputConstraint) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return json.dumps(vars(self))  # the order of a schema's properties is that of the answer
