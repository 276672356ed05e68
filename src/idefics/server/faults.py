"""What went wrong, as OpenAI's clients read it: a status and an object "error" (see docs/server.md)."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from idefics.errors import BadPicture, BadRequest, EngineBusy, IdeficsError, PromptTooLong
from idefics.server import request_ids

MOST_NAMED = 10  # faults of one request that are listed
OBJECT = "a valid dictionary or object to extract fields from"  # pydantic's words
HALF = "a text holds half of a character (a lone surrogate): send whole ones"
UNREADABLE = "the body cannot be read as JSON: send UTF-8, and numbers of fewer than 4,300 digits"
TOKEN_ID = "not the id of a token: give a whole number, such as 42"
REFUSED = "invalid_request_error"
UNKNOWN, UNSUPPORTED = "unknown_field", "unsupported_field"  # types of errors of `request_object`
REFUSALS = (UNKNOWN, UNSUPPORTED)

UNKNOWN_TYPES = ("unknown_part", "unknown_format")  # types of errors of `by_type`
LONGEST_TYPE = 40  # characters of a "type" that are shown

log = logging.getLogger("idefics.server")


class Fault(HTTPException):
    """An answer that is an error.

    Args:
        status: of HTTP.
        headers: beside it, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = REFUSED,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.type, self.code, self.param = message, type, code, param

    @property
    def body(self) -> dict[str, Any]:
        """What a client is told."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**error, "request_id": request_ids.current.get()}}

    def response(self) -> Response:
        """As an answer of its own."""
        return JSONResponse(self.body, self.status_code, self.headers)


def busy(message: str, seconds: int) -> Fault:
    """There is no room now: ask again after so many seconds."""
    return Fault(
        429,
        message,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def closing() -> Fault:
    """The server goes down, and what is asked cannot be finished."""
    return Fault(
        503,
        "the server is shutting down: ask again in a moment",
        type="server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )


def fault_of(error: Exception) -> Fault:
    """What a client is told about any error. Of one that nobody foresaw it learns nothing, and the log no contents."""
    match error:
        case Fault():
            return error
        case PromptTooLong():
            return Fault(400, str(error), code="context_length_exceeded", param="messages")
        case BadPicture():
            return Fault(400, str(error), code="invalid_image")
        case BadRequest():
            return Fault(400, str(error))
        case EngineBusy():
            return busy(str(error), 1)
        case HTTPException(status_code=404):
            return Fault(404, "there is nothing at this address: /docs lists all that there is")
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("Allow", "another method")
            return Fault(405, f"this address is asked by {allowed}", headers=error.headers)
        case HTTPException(detail="There was an error parsing the body") if isinstance(
            error.__cause__, ValueError
        ):
            return Fault(400, UNREADABLE, code="invalid_json")
        case HTTPException():
            return Fault(error.status_code, str(error.detail), headers=error.headers)
        case UnicodeEncodeError():
            return Fault(400, HALF)
        case RequestValidationError():
            return _invalid(error.errors())
        case IdeficsError():
            return Fault(500, str(error), type="server_error")
    where = "".join(traceback.format_tb(error.__traceback__))  # the message may hold what a client has said
    log.error("%s in request %s\n%s", type(error).__name__, request_ids.current.get(), where)
    return Fault(500, "something went wrong here, not with what you asked", type="server_error")


def _invalid(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """Fields that are unknown, missing, or hold what they may not; each is named."""
    refused = [error for error in errors if error["type"] in REFUSALS]
    if refused:
        return Fault(400, _refusal(refused), code="unknown_parameter", param=_place(refused[0]["loc"]))
    first = errors[0]
    if first["type"] == "json_invalid":
        why = first["ctx"]["error"]
        return Fault(400, f"the body is not JSON: {_lower(why)}", code="invalid_json")
    if first["type"] == "model_attributes_type" and len(first["loc"]) == 1:
        message = "the body is not an object of JSON: send one, with Content-Type: application/json"
        return Fault(400, message, code="invalid_json")
    said = "; ".join(f"{_place(error['loc'])}: {_said(error)}" for error in errors[:MOST_NAMED])
    more = f"; and {len(errors) - MOST_NAMED} more" if len(errors) > MOST_NAMED else ""
    is_missing = first["type"] == "missing"
    code = "missing_required_parameter" if is_missing else "invalid_value"
    return Fault(400, said + more, code=code, param=_place(first["loc"]))


def _refusal(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is said of fields that are not known, or not used, here."""
    said = []
    for error in errors[:MOST_NAMED]:
        if error["type"] == UNSUPPORTED:
            way = f": {instead}" if (instead := error["ctx"]["instead"]) else ": leave it out"
            said.append(f"{_place(error['loc'])}{error['ctx']['shown']} is not supported{way}")
    unknown = [error for error in errors if error["type"] == UNKNOWN]
    if unknown:
        names = [_place(error["loc"]) for error in unknown]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        near = next((near for error in unknown if (near := error["ctx"]["instead"])), None)
        said.append(
            f"unknown field{'s' * (len(names) > 1)}: {', '.join(names[:MOST_NAMED])}{more}: "
            f"{near or 'leave out what this server does not know'}"
        )
    return "; ".join(said)


def _place(loc: Sequence[int | str]) -> str:
    """`messages[0].content[1].text`; the names of alternatives, in angle brackets, are left out."""
    place = ""
    for part in loc[1:]:  # the first says that it is of the body
        if isinstance(part, int):
            place += f"[{part}]"
        elif not part.startswith("<") and part != "[key]":
            place += f".{part[:100]}"
    return place.removeprefix(".") or "body"


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong with one field, in plain words, and the "type" of an object where no member of a union has it."""
    if error["loc"][-1] == "[key]":
        return TOKEN_ID
    value = error.get("input")
    given = value.get("type") if isinstance(value, dict) else None
    is_shown = error["type"] in UNKNOWN_TYPES and isinstance(given, str) and len(given) <= LONGEST_TYPE
    return _lower(error["msg"]) + (f', not "{given}"' if is_shown else "")


def _lower(text: str) -> str:
    if "surrogates not allowed" in text or "as a unicode string" in text:
        return HALF
    text = text.removeprefix("Value error, ").replace(OBJECT, "an object").replace(" after validation,", ",")
    return text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"


def install(app: FastAPI) -> None:
    """Every error that a route raises on purpose is answered so; what nobody foresaw is caught by the `Gate`."""

    async def answer(_: Request, error: Exception) -> Response:
        return fault_of(error).response()

    for kind in (Fault, IdeficsError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)
