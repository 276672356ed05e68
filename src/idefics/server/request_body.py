"""Bodies as JSON, or as a form with a file; what would take long to read is refused before it is parsed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from idefics.processing.json_values import has_more_values
from idefics.server.errors import APIError
from idefics.server.request_model import RequestModel

if TYPE_CHECKING:
    from idefics.server.request_context import ServerState

FILE_PART = "image"  # the part of a form that holds a picture's file
URL_FIELD = "image_url"  # the field that holds its address

LIST_FIELDS = ("labels", "choices", "banned", "stop")  # fields of a form that may come several times
TEXT_FIELDS = (
    "words",
    "image_url",
    "detail",
    "regex",
    "stop",
)  # and those that mean what they say; others are JSON

LARGE_BODY_BYTES = 1 << 17  # bytes of a body, from which on one after another is parsed
MAX_JSON_VALUES = 20_000  # values of JSON in one body: 512 messages have a tenth of them

F = TypeVar("F", bound=RequestModel)


class JSONBodyRoute(APIRoute):
    """A route whose body is JSON that is quick to parse."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, for requests of another class."""
        route_handler = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await route_handler(_BoundedRequest(request.scope, request.receive))

        return handle_bounded


class _BoundedRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BODY_BYTES:
            check_num_values(body)
            return _parse_json(body)
        service: ServerState = self.app.state.service
        async with service.large_body_lock:
            await asyncio.sleep(0)  # other requests come between: each step takes milliseconds
            check_num_values(body)
            await asyncio.sleep(0)
            value = _parse_json(body)
            await asyncio.sleep(0)
        return value


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise APIError(400, "the body is nested too deeply to be read", code="invalid_json") from None


def check_num_values(body: bytes) -> None:
    """Raises a Fault where JSON has so many values that parsing them would hold up other requests."""
    if has_more_values(body, MAX_JSON_VALUES):
        raise APIError(
            400,
            f"the body has more than {MAX_JSON_VALUES:,} values of JSON, which is the limit: send shorter lists",
            code="invalid_json",
        )


async def read_request(request: Request, model_class: type[F], max_part_bytes: int) -> tuple[F, bytes | None]:
    """The fields of a request, and the file that came with them, if one did; `max_part_bytes` bounds a part in bytes.

    Raises:
        RequestValidationError: as of a route that reads JSON alone.
        Fault: it is neither JSON nor a form, or it has several files.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        try:
            async with request.form(max_files=1, max_fields=2048, max_part_size=max_part_bytes) as form:
                return await _parse_form(form, model_class)
        except APIError:
            raise
        except HTTPException as error:
            reason = str(error.detail).rstrip(".")
            raise APIError(
                400,
                f"the form cannot be read ({reason}): send one file, {FILE_PART}=@photo.jpg, and fields of text",
            ) from None
    if content_type != "application/json":
        raise APIError(
            400, f"the Content-Type is {content_type[:100]!r}: send application/json or multipart/form-data"
        )
    body = await request.body()
    check_num_values(body)
    try:
        return model_class.model_validate_json(body), None
    except ValidationError as error:
        raise _to_request_validation_error(error) from None


async def _parse_form(form: FormData, model_class: type[F]) -> tuple[F, bytes | None]:
    file: bytes | None = None
    fields: dict[str, Any] = {}
    for name in form:
        values = form.getlist(name)
        if any(isinstance(value, UploadFile) for value in values):
            if name != FILE_PART:
                raise APIError(
                    400, f"the file is called {name[:100]!r}: call it {FILE_PART!r}", param=name[:100]
                )
            (upload,) = values
            file = await upload.read()  # type: ignore[union-attr]  # a file, as was asked
        elif name == FILE_PART:
            raise APIError(
                400,
                f"{FILE_PART} is a text here: send the file itself ({FILE_PART}=@photo.jpg)",
                param=FILE_PART,
            )
        else:
            fields[name] = _parse_form_value(name, values)
    encoded_fields = json.dumps(fields)
    check_num_values(encoded_fields.encode())
    try:
        return model_class.model_validate_json(encoded_fields), file
    except ValidationError as error:
        raise _to_request_validation_error(error) from None


def _parse_form_value(name: str, values: list[Any]) -> Any:
    """What the texts of a form's field say: a list, a text, or JSON."""
    if name in LIST_FIELDS:
        return values[0] if name in TEXT_FIELDS and len(values) == 1 else values
    if len(values) > 1 or name in TEXT_FIELDS:
        return values[0] if len(values) == 1 else values
    check_num_values(values[0].encode(errors="surrogatepass"))
    try:
        return json.loads(values[0])
    except (ValueError, RecursionError):
        return values[0]


def _to_request_validation_error(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(
        [
            {**item, "loc": ("body", *item["loc"])}
            for item in error.errors(include_url=False, include_input=False)
        ]
    )
