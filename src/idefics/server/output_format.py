"""What an answer has to look like: `response_format` of chat completions, `text.format` of responses."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, Tag, model_validator

from idefics.server.faults import Fault
from idefics.server.request_object import Fields, by_type

MOST_NESTED = 32  # levels of a JSON schema
MOST_FORM = 16_384  # bytes of a JSON schema, or of all choices


def _small_enough(schema: dict[str, Any]) -> dict[str, Any]:
    if (size := len(json.dumps(schema))) > MOST_FORM:
        raise ValueError(f"the schema has {size:,} characters; at most {MOST_FORM:,} are read")
    level: list[Any] = [schema]
    for _ in range(MOST_NESTED):
        for outer in level:
            step = outer.get("multipleOf", 1) if isinstance(outer, dict) else 1
            if isinstance(step, int | float) and not _has_few_digits(step):
                raise ValueError("multipleOf is a number of more than four digits: give one of fewer")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        raise ValueError(f"the schema is nested more than {MOST_NESTED} times")
    return schema


def _has_few_digits(number: float) -> bool:
    """At most four: what is a multiple of N has N states."""
    return abs(number) < 10_000 and (
        number == round(number, 3) if abs(number) < 10 else number == round(number)
    )


Schema = Annotated[dict[str, Any], Field(max_length=256), AfterValidator(_small_enough)]


class JsonSchema(Fields):
    """What a JSON answer has to look like."""

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


ANY_OBJECT = {"type": "object"}


class PlainFormat(Fields):
    """Any text."""

    type: Literal["text"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: none."""
        return {}


class ObjectFormat(Fields):
    """Any JSON object; or JSON of one kind, in the words of TGI (`value`) and of llama.cpp (`schema`)."""

    type: Literal["json_object", "json"]
    value: Schema | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_one(self) -> ObjectFormat:
        if self.value is not None and self.schema_ is not None:
            raise ValueError("value and schema are both given: give one JSON schema")
        return self

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": next((one for one in (self.value, self.schema_) if one is not None), ANY_OBJECT)}


class RegexFormat(Fields):
    """A text that matches a regular expression, in the words of TGI."""

    type: Literal["regex"]
    value: str = Field(min_length=1, max_length=4096)

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""
        return {"regex": self.value}


def one_format(schema_format: Any) -> Any:
    """A field that says what an answer looks like.

    Args:
        schema_format: the class of a format that holds a JSON schema, as the route writes it.
    """
    return Annotated[
        Annotated[PlainFormat, Tag("<text>")]
        | Annotated[ObjectFormat, Tag("<json_object>")]
        | Annotated[ObjectFormat, Tag("<json>")]
        | Annotated[RegexFormat, Tag("<regex>")]
        | Annotated[schema_format, Tag("<json_schema>")],
        by_type("it", "unknown_format", "text", "json_object", "json_schema"),
    ]


class Format(Protocol):
    """A format of either route."""

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""


def with_format(wishes: dict[str, Any], said: Format | None) -> dict[str, Any]:
    """The keywords of a call, those of a format among them.

    Raises:
        Fault: an expression is given twice.
    """
    more = {} if said is None else said.generation_kwargs
    if twice := wishes.keys() & more.keys():
        raise Fault(400, f"{twice.pop()} is given twice, once as a format: give one", param="response_format")
    return wishes | more
