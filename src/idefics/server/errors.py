"""Errors in OpenAI's format: an HTTP status and a JSON object `error` (see docs/server.md)."""

from __future__ import annotations

import html
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from idefics.errors import BadPicture, BadRequest, EngineBusy, IdeficsError, PromptTooLong
from idefics.server import request_ids
from idefics.server.response_fields import ResponseFields

MAX_LISTED_ERRORS = 10  # errors of one request that its message lists
MAX_SHOWN_TYPE_CHARACTERS = 40  # longer values of "type" are not shown
PYDANTIC_OBJECT_PHRASE = "a valid dictionary or object to extract fields from"
LONE_SURROGATE_MESSAGE = "a text has a lone surrogate, which is half of a character: send whole characters"
TOKEN_ID_MESSAGE = "not the id of a token: give a whole number, such as 42"
INVALID_REQUEST_TYPE = "invalid_request_error"

# Types of pydantic's errors. All but the last are raised in request_model.py.
UNKNOWN_FIELD_TYPE, UNSUPPORTED_FIELD_TYPE = "unknown_field", "unsupported_field"
REFUSED_FIELD_TYPES = (UNKNOWN_FIELD_TYPE, UNSUPPORTED_FIELD_TYPE)
UNKNOWN_TYPE = "unknown_type"
NO_OBJECT_TYPES = ("model_attributes_type", "model_type")

log = logging.getLogger("idefics.server")


class ErrorField(ResponseFields):
    """An error: `message` for people; `type`, `code` and `param` (the field) for programs; the id of the request."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class ErrorBody(ResponseFields):
    """The body of every response with an error status."""

    error: ErrorField


class APIError(HTTPException):
    """An error that is sent to the client.

    Args:
        status: HTTP status.
        message: what is wrong and what to do, for people.
        type: class of errors, such as `invalid_request_error`.
        code: the error, such as `invalid_value`.
        param: the field of the request that is wrong, such as `messages[0].content`.
        headers: additional headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST_TYPE,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.type, self.code, self.param = message, type, code, param

    @property
    def body(self) -> ErrorBody:
        """The JSON body of the response, with the id of the current request."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                "request_id": request_ids.current_request_id.get(),
            }
        }

    def to_response(self) -> Response:
        """The response with this error, its status and headers."""
        return JSONResponse(self.body, self.status_code, self.headers)

    def to_page(self) -> Response:
        """The same as a page in words, for somebody who opened the address in a browser."""
        message = html.escape(self.body["error"]["message"])
        page = (
            f'<!doctype html><html lang="en"><title>idefics</title><h1>No access</h1><p>{message}.</p></html>'
        )
        headers = {"content-security-policy": "default-src 'none'", **(self.headers or {})}
        return HTMLResponse(page, self.status_code, headers)


def too_many_requests_error(message: str, retry_after: int) -> APIError:
    """The error of a request that exceeds a limit now, and may succeed after `retry_after` seconds."""
    return APIError(
        429,
        message,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after)},
    )


def shutting_down_error() -> APIError:
    """The error of a request that the server cannot complete because it is shutting down."""
    return APIError(
        503,
        "the server is shutting down: try again in a few seconds",
        type="server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )


def to_api_error(error: Exception) -> APIError:
    """The error to send for any exception.

    An unexpected exception is logged with its traceback, without its message, which may quote the request. The client
    learns no details of it.
    """
    match error:
        case APIError():
            return error
        case PromptTooLong():
            return APIError(400, str(error), code="context_length_exceeded", param="messages")
        case BadPicture():
            return APIError(400, str(error), code="invalid_image")
        case BadRequest():
            return APIError(400, str(error))
        case EngineBusy():
            return too_many_requests_error(str(error), 1)
        case HTTPException(status_code=404):
            return APIError(404, "no such route: /docs lists all routes")
        case HTTPException(status_code=405):
            allowed_methods = (error.headers or {}).get("Allow", "another method")
            return APIError(405, f"method not allowed: use {allowed_methods}", headers=error.headers)
        case HTTPException():
            return APIError(error.status_code, str(error.detail), headers=error.headers)
        case UnicodeEncodeError():
            return APIError(400, LONE_SURROGATE_MESSAGE)
        case RequestValidationError():
            return _validation_error(error.errors())
        case IdeficsError():
            return APIError(500, str(error), type="server_error")
    formatted_traceback = "".join(traceback.format_tb(error.__traceback__))
    log.error(
        "%s in request %s\n%s",
        type(error).__name__,
        request_ids.current_request_id.get(),
        formatted_traceback,
    )
    return APIError(
        500,
        "internal server error: the server's log has the cause under this request_id",
        type="server_error",
    )


def _validation_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """The error for fields that are unknown, missing or invalid, naming each."""
    refused_fields = [error for error in errors if error["type"] in REFUSED_FIELD_TYPES]
    if refused_fields:
        return APIError(
            400,
            _describe_refused_fields(refused_fields),
            code="unknown_parameter",
            param=_field_path(refused_fields[0]["loc"]),
        )
    first_error = errors[0]
    if first_error["type"] in NO_OBJECT_TYPES and len(first_error["loc"]) == 1:
        message = "the body is not a JSON object: send one, with Content-Type: application/json"
        return APIError(400, message, code="invalid_json")
    descriptions = "; ".join(
        f"{_field_path(error['loc'])}: {_describe_field_error(error)}" for error in errors[:MAX_LISTED_ERRORS]
    )
    omitted_text = f"; and {len(errors) - MAX_LISTED_ERRORS} more" if len(errors) > MAX_LISTED_ERRORS else ""
    is_missing = first_error["type"] == "missing"
    code = "missing_required_parameter" if is_missing else "invalid_value"
    return APIError(400, descriptions + omitted_text, code=code, param=_field_path(first_error["loc"]))


def _describe_refused_fields(errors: Sequence[Mapping[str, Any]]) -> str:
    """The message for fields that are unknown, or known but not supported."""
    sentences = [
        _field_path(error["loc"]) + error["msg"]
        for error in errors[:MAX_LISTED_ERRORS]
        if error["type"] == UNSUPPORTED_FIELD_TYPE
    ]
    unknown_fields = [error for error in errors if error["type"] == UNKNOWN_FIELD_TYPE]
    if unknown_fields:
        names = [_field_path(error["loc"]) for error in unknown_fields]
        omitted_text = f" and {len(names) - MAX_LISTED_ERRORS} more" if len(names) > MAX_LISTED_ERRORS else ""
        hint = next(filter(None, (error["msg"] for error in unknown_fields)), "leave out unknown fields")
        sentences.append(
            f"unknown field{'s' * (len(names) > 1)}: {', '.join(names[:MAX_LISTED_ERRORS])}{omitted_text}: {hint}"
        )
    return "; ".join(sentences)


def _field_path(location: Sequence[int | str]) -> str:
    """The path of a field, such as `messages[0].content[1].text`, from pydantic's location of an error.

    Parts of the location in angle brackets are left out: they are tags of unions, not fields.
    """
    path = ""
    for part in location[1:]:  # the first part is "body"
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<") and part != "[key]":
            path += f".{part[:100]}"
    return path.removeprefix(".") or "body"


def _describe_field_error(error: Mapping[str, Any]) -> str:
    """The message for one invalid field; it shows the "type" of an object whose type is unknown."""
    if error["loc"][-1] == "[key]":
        return TOKEN_ID_MESSAGE
    value = error.get("input")
    type_name = value.get("type") if isinstance(value, dict) else None
    shows_type = (
        error["type"] == UNKNOWN_TYPE
        and isinstance(type_name, str)
        and len(type_name) <= MAX_SHOWN_TYPE_CHARACTERS
    )
    return _rephrase_pydantic_message(error["msg"]) + (f', not "{type_name}"' if shows_type else "")


def _rephrase_pydantic_message(text: str) -> str:
    """One of pydantic's messages in the style of this server: in lower case, with JSON's terms."""
    if "surrogates not allowed" in text or "as a unicode string" in text:
        return LONE_SURROGATE_MESSAGE
    text = (
        text.removeprefix("Value error, ")
        .replace(PYDANTIC_OBJECT_PHRASE, "an object")
        .replace(" after validation,", ",")
    )
    return text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"


async def handle_error(_: Request, error: Exception) -> Response:
    """The response for an exception that FastAPI would answer in another format; the middleware answers all others."""
    return to_api_error(error).to_response()
