"""The base class of all objects in requests, and its rule for fields that the server does not use.

Clients send many fields of OpenAI's API and of other servers (vLLM, TGI, llama.cpp) with default values. A value that
does not change what the server does is ignored. Any other value could change the answer, so it is refused, with a hint.

1. `null` is the same as leaving a field out, whatever its name.
2. A field in the table of its object (see `ignored_field_tables.py`) is ignored with the values listed there only.
3. Any other unknown field is ignored if its value is `[]` or `{}`.
4. All other unknown fields are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from idefics.server.errors import UNKNOWN_FIELD_TYPE, UNKNOWN_TYPE, UNSUPPORTED_FIELD_TYPE

MAX_COMPARED_NAME_CHARACTERS = 64  # longer unknown names are not compared with known ones
MAX_COMPARED_FIELDS = 10  # unknown names of one object that are compared with known ones
MAX_SHOWN_VALUE_CHARACTERS = 40  # longer refused values are not shown
MAX_LISTED_FIELDS = 64  # if an object has more unknown fields, they are counted and not listed

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
    """A table of ignored fields: those of other tables, and further ones. `null` is ignored in each field.

    Args:
        tables: the other tables, whose fields the further ones replace.
        any_value: names of fields that are ignored with any value.
        default_only: name of a field -> the one value with which it is ignored.
        values_or_hint: name of a field -> a hint for other values, followed by the values with which it is ignored.
        null_or_hint: name of a field -> a hint for all values but `null`.
    """
    return {
        **{name: row for table in tables for name, row in table.items()},
        **dict.fromkeys(any_value, IgnoredField(None)),
        **{name: IgnoredField((value,)) for name, value in default_only.items()},
        **{name: IgnoredField((*values,), hint) for name, (hint, *values) in values_or_hint.items()},
        **{name: IgnoredField((), hint) for name, hint in null_or_hint.items()},
    }


def _document_ignored_fields(schema: dict[str, Any], model_class: type[RequestModel]) -> None:
    """Adds the fields and values that a class ignores to its JSON schema, in place."""
    properties, required = schema.setdefault("properties", {}), schema.get("required", [])
    for name, property_schema in properties.items():
        options = (property_schema, *property_schema.get("anyOf", ()))
        allows_null = any(option.get("type") == "null" for option in options)
        if name not in required and not allows_null:
            properties[name] = {"anyOf": [property_schema, {"type": "null"}]}
    for name, ignored_field in model_class.ignored_fields.items():
        allowed_values = (
            {} if ignored_field.ignored_values is None else {"enum": [None, *ignored_field.ignored_values]}
        )
        if name not in properties:
            properties[name] = allowed_values | {"description": f"Not used. {ignored_field.hint}".strip()}
        elif allowed_values:
            properties[name] = {"anyOf": [properties[name], allowed_values]}
    schema["additionalProperties"] = {"enum": list(EMPTY_VALUES)}


class RequestModel(BaseModel):
    """A JSON object in a request. Fields that the class does not declare are ignored or refused.

    Attributes:
        ignored_fields: the table of ignored fields for this class.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        frozen=True,
        json_schema_extra=_document_ignored_fields,
    )

    ignored_fields: ClassVar[IgnoredFields] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored_and_refuse_unknown(cls, data: Any) -> Any:
        """Removes ignored fields before validation.

        Raises:
            ValidationError: fields are refused.
            UnicodeEncodeError: a text has a lone surrogate.
        """
        if not isinstance(data, dict):
            return data
        for text in (*data, *data.values()):
            if isinstance(text, str) and not text.isascii():
                text.encode()
        is_required_by_name = {
            field.alias or name: field.is_required() for name, field in cls.model_fields.items()
        }
        fields = {
            name: value
            for name, value in data.items()
            if is_required_by_name.get(name)
            or not cls.ignored_fields.get(
                name, USED_FIELD if name in is_required_by_name else UNKNOWN_FIELD
            ).is_ignored_value(value)
        }
        unknown_fields = {name: value for name, value in fields.items() if name not in is_required_by_name}
        if len(unknown_fields) > MAX_LISTED_FIELDS:
            raise ValueError(f"{len(unknown_fields):,} of its fields are unknown: leave them out")
        if unknown_fields:
            raise ValidationError.from_exception_data(
                cls.__name__,
                list(_refused_field_errors(unknown_fields, [*is_required_by_name], cls.ignored_fields)),
            )
        return fields


def union_by_type(error_message: str, **class_by_type: type[RequestModel]) -> Any:
    """The type annotation of an object whose field "type" selects its class.

    In the location of a validation error the type is in angle brackets, so that it can be told from field names.

    Args:
        error_message: for objects of other types.
        class_by_type: value of "type" -> the class.
    """
    return Annotated[
        reduce(or_, (Annotated[cls, Tag(f"<{name}>")] for name, cls in class_by_type.items())),
        Discriminator(
            lambda value: f"<{value.get('type')}>" if isinstance(value, dict) else "<>",
            custom_error_type=UNKNOWN_TYPE,
            custom_error_message=error_message,
        ),
    ]


def text_or_list(text_type: Any, list_type: Any, error_message: str = "") -> Any:
    """The type annotation of a field that is a text or a list.

    In the location of a validation error the kind is in angle brackets, so that it can be told from field names.

    Args:
        text_type, list_type: the types of the two.
        error_message: for other values; "": they are validated as lists.
    """

    def select_tag(value: Any) -> str | None:
        if isinstance(value, str):
            return "<text>"
        return "<list>" if isinstance(value, list) or not error_message else None

    return Annotated[
        Annotated[text_type, Tag("<text>")] | Annotated[list_type, Tag("<list>")],
        Discriminator(select_tag, custom_error_type="no_text_or_list", custom_error_message=error_message),
    ]


def unsupported_error(shown_value: str, hint: str) -> PydanticCustomError:
    """The error for an object or a value that the server does not support.

    Args:
        shown_value: names the object in the message; "": it is not shown.
        hint: what to do instead; "": leave it out.
    """
    shown_text = f" ({shown_value})" if shown_value else ""
    text = f"{shown_text} is not supported: {hint or 'leave it out'}"
    return PydanticCustomError(UNSUPPORTED_FIELD_TYPE, "{text}", {"text": text})


def _refused_field_errors(
    unknown_fields: dict[str, Any], known_names: list[str], ignored_fields: IgnoredFields
) -> Iterator[InitErrorDetails]:
    """Yields an error for each unknown field of an object.

    Its message has the hint in `ignored_fields` if the field is known there, else the nearest of `known_names`.
    """
    for index, (name, value) in enumerate(unknown_fields.items()):
        if name in ignored_fields:
            text = json.dumps(value)
            shown_value = text if len(text) <= MAX_SHOWN_VALUE_CHARACTERS else ""
            error = unsupported_error(shown_value, ignored_fields[name].hint)
        else:
            is_compared = index < MAX_COMPARED_FIELDS and len(name) <= MAX_COMPARED_NAME_CHARACTERS
            close_matches = get_close_matches(name, known_names, 1, 0.75) if is_compared else []
            text = f"did you mean {close_matches[0]}?" if close_matches else ""
            error = PydanticCustomError(UNKNOWN_FIELD_TYPE, "{text}", {"text": text})
        yield InitErrorDetails(type=error, loc=(name,), input=None)
