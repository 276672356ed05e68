"""The base of everything that a request's JSON is made of: which fields are read, ignored or refused.

The rule, and the tables that it reads, are in `neutral.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from idefics.server.faults import UNKNOWN, UNSUPPORTED
from idefics.server.neutral import EMPTY, Unused, is_ignored

LONGEST_NAME = 64  # characters of an unknown name that are compared with known ones
LONGEST_VALUE = 40  # characters of a refused value that are shown
MOST_COMPARED = 10  # unknown names of one object that are compared
MOST_UNKNOWN = 64  # unknown names of one object that are named


def _describe(schema: dict[str, Any], kind: type[Fields]) -> None:
    """Adds to a JSON schema what the rule accepts beside the fields of the class."""
    properties, required = schema.setdefault("properties", {}), schema.get("required", [])
    for name, said in properties.items():
        if name not in required and not _takes_null(said):
            properties[name] = {"anyOf": [said, {"type": "null"}]}
    for name, one in kind.unused.items():
        values = {} if one.neutral is None else {"enum": [None, *one.neutral]}
        if name not in properties:
            properties[name] = values | {"description": f"Not used. {one.instead}".strip()}
        elif values:
            properties[name] = {"anyOf": [properties[name], values]}
    schema["additionalProperties"] = {"enum": list(EMPTY)}


def _takes_null(schema: dict[str, Any]) -> bool:
    return any(one.get("type") == "null" for one in (schema, *schema.get("anyOf", ())))


class Fields(BaseModel):
    """An object of JSON: fields of other names are ignored where they ask for nothing, and else refused.

    Attributes:
        unused: the fields, and the values of fields, that are ignored in this object.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, json_schema_extra=_describe
    )

    unused: ClassVar[Unused] = {}

    @model_validator(mode="before")
    @classmethod
    def _used(cls, said: Any) -> Any:
        """The fields that ask for something.

        Raises:
            ValidationError: some of them are not known here; all are named where they are few.
            UnicodeEncodeError: a text holds half of a character.
        """
        if not isinstance(said, dict):
            return said
        for text in (*said, *said.values()):
            if isinstance(text, str) and not text.isascii():
                text.encode()
        known = {field.alias or name: field.is_required() for name, field in cls.model_fields.items()}
        kept = {
            name: value
            for name, value in said.items()
            if known.get(name) or not is_ignored(name, value, cls.unused, is_used=name in known)
        }
        unknown = {name: value for name, value in kept.items() if name not in known}
        if len(unknown) > MOST_UNKNOWN:
            raise ValueError(f"{len(unknown):,} of its fields are not known here: leave them out")
        if unknown:
            raise ValidationError.from_exception_data(
                cls.__name__, list(_refusals(unknown, [*known], cls.unused))
            )
        return kept


def by_type(what: str, fault: str, *types: str) -> Discriminator:
    """Chooses among members tagged "<text>" and the like by "type"; `what` and `fault` name and class the refusal."""
    *first, last = (f'"{name}"' for name in types)
    return Discriminator(
        lambda value: f"<{value.get('type')}>" if isinstance(value, dict) else "<>",
        custom_error_type=fault,
        custom_error_message=f'{what} has a "type", which is {", ".join(first)} or {last}',
    )


def unsupported(shown: str, instead: str) -> PydanticCustomError:
    """The error of an object that is refused as a whole; `shown` says which, `instead` what to do."""
    return PydanticCustomError(UNSUPPORTED, "{instead}", {"shown": f" ({shown})", "instead": instead})


def _refusals(unknown: dict[str, Any], known: list[str], unused: Unused) -> Iterator[InitErrorDetails]:
    for number, (name, value) in enumerate(unknown.items()):
        if name in unused:
            text = json.dumps(value)
            shown = f" ({text})" if len(text) <= LONGEST_VALUE else ""
            kind, instead = UNSUPPORTED, unused[name].instead
        else:
            is_compared = number < MOST_COMPARED and len(name) <= LONGEST_NAME
            near = get_close_matches(name, known, 1, 0.75) if is_compared else []
            kind, shown, instead = UNKNOWN, "", f"did you mean {near[0]}?" if near else ""
        error = PydanticCustomError(kind, "{instead}", {"shown": shown, "instead": instead})
        yield InitErrorDetails(type=error, loc=(name,), input=None)
