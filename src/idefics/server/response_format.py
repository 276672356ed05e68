"""Structured output: `response_format` of chat completions, `text.format` of responses."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from idefics.server.request_model import RequestModel, union_by_type

MAX_SCHEMA_DEPTH = 32  # levels of a JSON schema
MAX_CONSTRAINT_BYTES = 16_384  # of a JSON schema, or of all choices together


def _check_schema_size(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON schema; raises ValueError if it is too long or too deep, or has a large `multipleOf`."""
    if (size := len(json.dumps(schema))) > MAX_CONSTRAINT_BYTES:
        raise ValueError(f"the schema has {size:,} characters; the limit is {MAX_CONSTRAINT_BYTES:,}")
    _check_schema_part(schema, MAX_SCHEMA_DEPTH)
    return schema


def _check_schema_part(part: Any, max_depth: int) -> None:
    """Raises ValueError if a part of a schema has more than `max_depth` levels, or a large `multipleOf`."""
    if not isinstance(part, dict | list):
        return
    if max_depth == 0:
        raise ValueError(f"the schema is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    multiple_of = part.get("multipleOf") if isinstance(part, dict) else None
    if isinstance(multiple_of, int | float) and not _has_at_most_four_digits(multiple_of):
        raise ValueError("multipleOf has more than four digits: give a number with fewer")
    for inner in part.values() if isinstance(part, dict) else part:
        _check_schema_part(inner, max_depth - 1)


def _has_at_most_four_digits(number: float) -> bool:
    """Whether a schema's `multipleOf` has at most four digits: the grammar for multiples of N has N states."""
    return abs(number) < 10_000 and (
        number == round(number, 3) if abs(number) < 10 else number == round(number)
    )


JsonSchemaDict = Annotated[dict[str, Any], Field(max_length=256), AfterValidator(_check_schema_size)]


class JsonSchema(RequestModel):
    """A JSON schema that the answer must match, with a name."""

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: JsonSchemaDict = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """Base of the formats of structured output: what the answer must match."""

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The constraint on the answer as keyword arguments of `Idefics.submit`; empty if there is none."""
        return {}


class TextFormat(ResponseFormat):
    """Text without constraints; the default."""

    type: Literal["text"]


class JsonObjectFormat(ResponseFormat):
    """Any JSON object, or JSON that matches a schema, as in TGI (`value`) and llama.cpp (`schema`)."""

    type: Literal["json_object", "json"]
    value: JsonSchemaDict | None = None
    schema_: JsonSchemaDict | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_at_most_one_schema(self) -> Self:
        """Raises ValueError for a format that has a schema both in `value` and in `schema`."""
        if self.value is not None and self.schema_ is not None:
            raise ValueError("value and schema are both given: give one JSON schema")
        return self

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The schema as the argument `schema` of `Idefics.submit`; without one, a schema that any object matches."""
        schemas = [one for one in (self.value, self.schema_, {"type": "object"}) if one is not None]
        return {"schema": schemas[0]}


class RegexFormat(ResponseFormat):
    """A text that matches a regular expression, as in TGI."""

    type: Literal["regex"]
    value: str = Field(min_length=1, max_length=4096)

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The regular expression as the keyword argument `regex` of `Idefics.submit`."""
        return {"regex": self.value}


def response_format_field_type(schema_format: type[ResponseFormat]) -> Any:
    """The type annotation of the field for structured output; `schema_format` is the route's class for schemas."""
    return union_by_type(
        'it has a "type", which is "text", "json_object" or "json_schema"',
        text=TextFormat,
        json_object=JsonObjectFormat,
        json=JsonObjectFormat,
        regex=RegexFormat,
        json_schema=schema_format,
    )
