"""What an answer has to look like: `response_format` of chat completions, `text.format` of responses."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, Tag, model_validator

from idefics.server.errors import APIError
from idefics.server.request_model import RequestModel, type_discriminator

MAX_SCHEMA_DEPTH = 32  # levels of a JSON schema
MAX_CONSTRAINT_BYTES = 16_384  # bytes of a JSON schema, or of all choices


def _check_schema_size(schema: dict[str, Any]) -> dict[str, Any]:
    if (size := len(json.dumps(schema))) > MAX_CONSTRAINT_BYTES:
        raise ValueError(f"the schema has {size:,} characters; at most {MAX_CONSTRAINT_BYTES:,} are read")
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        for outer in level:
            multiple_of = outer.get("multipleOf", 1) if isinstance(outer, dict) else 1
            if isinstance(multiple_of, int | float) and not _has_at_most_four_digits(multiple_of):
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
        raise ValueError(f"the schema is nested more than {MAX_SCHEMA_DEPTH} times")
    return schema


def _has_at_most_four_digits(number: float) -> bool:
    """At most four: what is a multiple of N has N states."""
    return abs(number) < 10_000 and (
        number == round(number, 3) if abs(number) < 10 else number == round(number)
    )


JsonSchemaDict = Annotated[dict[str, Any], Field(max_length=256), AfterValidator(_check_schema_size)]


class JsonSchema(RequestModel):
    """What a JSON answer has to look like."""

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: JsonSchemaDict = Field(alias="schema")
    strict: bool | None = None


ANY_OBJECT = {"type": "object"}


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: none."""
        return {}


class JsonObjectFormat(RequestModel):
    """Any JSON object; or JSON of one kind, in the words of TGI (`value`) and of llama.cpp (`schema`)."""

    type: Literal["json_object", "json"]
    value: JsonSchemaDict | None = None
    schema_: JsonSchemaDict | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_single_schema(self) -> JsonObjectFormat:
        if self.value is not None and self.schema_ is not None:
            raise ValueError("value and schema are both given: give one JSON schema")
        return self

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": next((one for one in (self.value, self.schema_) if one is not None), ANY_OBJECT)}


class RegexFormat(RequestModel):
    """A text that matches a regular expression, in the words of TGI."""

    type: Literal["regex"]
    value: str = Field(min_length=1, max_length=4096)

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""
        return {"regex": self.value}


def response_format_field(schema_format: Any) -> Any:
    """A field that says what an answer looks like.

    Args:
        schema_format: the class of a format that holds a JSON schema, as the route writes it.
    """
    return Annotated[
        Annotated[TextFormat, Tag("<text>")]
        | Annotated[JsonObjectFormat, Tag("<json_object>")]
        | Annotated[JsonObjectFormat, Tag("<json>")]
        | Annotated[RegexFormat, Tag("<regex>")]
        | Annotated[schema_format, Tag("<json_schema>")],
        type_discriminator("it", "unknown_format", "text", "json_object", "json_schema"),
    ]


class ResponseFormat(Protocol):
    """A format of either route."""

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""


def merge_format_kwargs(
    generation_kwargs: dict[str, Any], response_format: ResponseFormat | None
) -> dict[str, Any]:
    """The keywords of a call, those of a format among them.

    Raises:
        Fault: an expression is given twice.
    """
    format_kwargs = {} if response_format is None else response_format.generation_kwargs
    if duplicate_keys := generation_kwargs.keys() & format_kwargs.keys():
        raise APIError(
            400, f"{duplicate_keys.pop()} is given twice, once as a format: give one", param="response_format"
        )
    return generation_kwargs | format_kwargs
