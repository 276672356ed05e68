"""Parameters and bodies that FastAPI passes to routes, and the descriptions of what routes answer.

Bodies that would take long to parse are refused before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from idefics.processing.json_values import has_more_values
from idefics.server.errors import APIError, ErrorBody
from idefics.server.middleware import CONTEXT_SCOPE_KEY
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.server_state import ServerState

FILE_FIELD = "image"  # field of a form that has the file of a picture
FILE_SCHEMA = {"type": "string", "contentMediaType": "application/octet-stream"}

# Fields of a form are texts. Those that are not listed here are parsed as JSON, if they are valid JSON.
LIST_FIELDS = ("labels", "choices", "banned", "stop")  # lists of texts: the field occurs once per text
TEXT_FIELDS = ("words", "image_url", "detail", "regex", "stop")

LARGE_BODY_BYTES = 1 << 17  # bodies from this size on are parsed one at a time
MAX_JSON_VALUES = 20_000  # of one body; 512 messages have a tenth of them

F = TypeVar("F", bound=RequestModel)


class JSONBodyRoute(APIRoute):
    """A FastAPI route that parses JSON bodies with `BoundedRequest.json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler of the route, called with a `BoundedRequest`."""
        route_handler = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await route_handler(BoundedRequest(request.scope, request.receive))

        return handle_bounded


class BoundedRequest(Request):
    """A request whose JSON is parsed without blocking other requests for long."""

    async def json(self) -> Any:
        """The body, parsed. Large bodies are parsed one at a time, and other requests run between the steps.

        Raises:
            APIError: 400, the body is not JSON, or has more than `MAX_JSON_VALUES` values.
        """
        body = await self.body()
        if len(body) < LARGE_BODY_BYTES:
            check_num_values(body)
            return _parse_json(body)
        service: ServerState = self.app.state.service
        async with service.large_body_lock:
            await asyncio.sleep(0)
            check_num_values(body)
            await asyncio.sleep(0)
            value = _parse_json(body)
            await asyncio.sleep(0)
        return value


def _parse_json(body: bytes) -> Any:
    """Parses JSON; raises an `APIError` (400) if it is invalid or nested too deeply."""
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno} column {error.colno}"
        reason = f"the body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {position}"
    except ValueError:
        reason = "the body cannot be read as JSON: send UTF-8, and numbers of fewer than 4,300 digits"
    except RecursionError:
        reason = "the body is nested too deeply to be read"
    raise APIError(400, reason, code="invalid_json")


def check_num_values(body: bytes) -> None:
    """Raises an `APIError` (400) if JSON has more than `MAX_JSON_VALUES` values. Does not parse it."""
    if has_more_values(body, MAX_JSON_VALUES):
        raise APIError(
            400,
            f"the body has more than {MAX_JSON_VALUES:,} JSON values, which is the limit: send shorter lists",
            code="invalid_json",
        )


async def read_json_or_form(request: Request, model_class: type[F]) -> tuple[F, bytes | None]:
    """Reads a body that is JSON or a form.

    Returns:
        The fields, and the content of the file, if the form has one.

    Raises:
        RequestValidationError: a field is missing, unknown or has a value that is not allowed.
        APIError: 400, the body is neither JSON nor a form, or the form has several files.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        fields, file = await _read_form(request)
    elif content_type == "application/json":
        fields, file = await request.json(), None
    else:
        raise APIError(
            400, f"the Content-Type is {content_type[:100]!r}: send application/json or multipart/form-data"
        )
    try:
        return model_class.model_validate(fields), file
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in details]) from None


async def _read_form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Reads a form: returns its fields by name, and the content of its file, None if it has none.

    Raises:
        APIError: 400, the form cannot be read, has several files, or has one in another field than `FILE_FIELD`.
    """
    try:
        # `AccessMiddleware` bounds the size of the whole body.
        async with request.form(max_files=1, max_fields=2048, max_part_size=sys.maxsize) as form:
            file: bytes | None = None
            fields: dict[str, Any] = {}
            for name in form:
                values = form.getlist(name)
                if any(isinstance(value, UploadFile) for value in values):
                    if name != FILE_FIELD:
                        raise APIError(
                            400,
                            f"the file is in the field {name[:100]!r}: send it as {FILE_FIELD!r}",
                            param=name[:100],
                        )
                    (upload,) = values  # `max_files` is 1
                    file = await upload.read()  # type: ignore[union-attr]
                elif name == FILE_FIELD:
                    raise APIError(
                        400,
                        f"{FILE_FIELD} is a text: send the file itself ({FILE_FIELD}=@photo.jpg)",
                        param=FILE_FIELD,
                    )
                else:
                    fields[name] = _parse_form_field(name, [str(value) for value in values])
    except APIError:
        raise
    except HTTPException as error:
        reason = str(error.detail).rstrip(".")
        raise APIError(
            400,
            f"the form cannot be read ({reason}): send one file, {FILE_FIELD}=@photo.jpg, and fields of text",
        ) from None
    check_num_values(json.dumps(fields).encode())
    return fields, file


def _parse_form_field(name: str, values: list[str]) -> Any:
    """The value of a form field, given each text that the form has for it.

    Several texts, or a field of `LIST_FIELDS` alone: a list of the texts. A field of `TEXT_FIELDS`: its text. Any other
    field: the text parsed as JSON, or the text itself if it is not JSON.

    Browsers send each line break as CRLF (https://html.spec.whatwg.org/#multipart-form-data), also one that was LF.
    """
    values = [text.replace("\r\n", "\n") for text in values]
    if len(values) > 1 or (name in LIST_FIELDS and name not in TEXT_FIELDS):
        return values
    (text,) = values
    if name in TEXT_FIELDS:
        return text
    check_num_values(text.encode(errors="surrogatepass"))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


ResponseDocs = dict[int | str, dict[str, Any]]

SCHEMA_REF_TEMPLATE = "#/components/schemas/{model}"

ERROR_DESCRIPTIONS = {
    400: "Invalid request; the message says why.",
    401: "API key missing or wrong.",
    403: "Cross-origin request refused.",
    404: "Model not found.",
    408: "Request not received in time.",
    413: "Request too large.",
    415: "Content-Encoding not supported.",
    421: "Host not allowed.",
    429: "Server busy; retry after the seconds in Retry-After.",
    431: "Too many headers.",
    500: "Internal server error.",
    503: "Server shutting down.",
}
GET_ERROR_STATUSES = (401, 403, 421, 431, 500)  # of routes without a body
ERROR_CONTENT = {
    "application/json": {"schema": {"$ref": SCHEMA_REF_TEMPLATE.format(model=ErrorBody.__name__)}}
}


def document_responses(response_type: Any, event_type: Any = None) -> ResponseDocs:
    """Describes the responses of a route for OpenAPI; `document_errors` adds those of its errors.

    Args:
        response_type: the `TypedDict` of the JSON answer.
        event_type: the `TypedDict` of an event's data, or a union of them, if the route can stream.
    """
    stream_docs = {} if event_type is None else {"content": _document_event_stream(event_type)}
    return {200: {"model": response_type, "description": response_type.__doc__, **stream_docs}}


def document_errors(responses: dict[str, Any], method: str) -> None:
    """Adds the errors of a method of a route to its responses in an OpenAPI description."""
    for status in ERROR_DESCRIPTIONS if method == "post" else GET_ERROR_STATUSES:
        responses.setdefault(
            str(status), {"description": ERROR_DESCRIPTIONS[status], "content": ERROR_CONTENT}
        )


def _document_event_stream(event_type: Any) -> dict[str, Any]:
    """The description of a stream of events for OpenAPI 3.2, with the schemas of its events under `$defs`.

    `move_schema_definitions` later moves those where OpenAPI expects them.
    """
    events = TypeAdapter(list[event_type]).json_schema(ref_template=SCHEMA_REF_TEMPLATE)
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {**events["items"], "$defs": events["$defs"]},
    }
    return {
        "text/event-stream": {
            "schema": {"type": "string", "description": "Server-sent events; see docs/server.md."},
            "itemSchema": {"type": "object", "properties": {"data": data}},
        }
    }


def move_schema_definitions(node: Any, schemas: dict[str, Any]) -> None:
    """Moves the `$defs` of all schemas within a part of an OpenAPI description to `schemas`, in place."""
    if isinstance(node, dict):
        schemas.update(node.pop("$defs", {}))
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            move_schema_definitions(child, schemas)


def select_model(context: RequestContext, name: str) -> None:
    """Lets a request be answered by the model of a name. Raises an `APIError` (404) if there is no such model."""
    context.vlm = context.vlm.with_adapter(context.service.find_adapter(name))


async def _get_server_state(request: Request) -> ServerState:
    """The state of the app that answers a request; FastAPI passes it to parameters of `ServerStateDep`."""
    return cast("ServerState", request.app.state.service)


async def _get_request_context(request: Request) -> RequestContext:
    """The context that the middleware made for a request; FastAPI passes it to parameters of `RequestContextDep`."""
    return cast("RequestContext", request.scope[CONTEXT_SCOPE_KEY])


ServerStateDep = Annotated[ServerState, Depends(_get_server_state)]
RequestContextDep = Annotated[RequestContext, Depends(_get_request_context)]
