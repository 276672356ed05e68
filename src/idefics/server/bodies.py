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
from idefics.server.faults import Fault
from idefics.server.request_object import Fields

if TYPE_CHECKING:
    from idefics.server.visit import Service

FILE = "image"  # the part of a form that holds a picture's file
ADDRESS = "image_url"  # the field that holds its address

LISTS = ("labels", "choices", "banned", "stop")  # fields of a form that may come several times
TEXTS = (
    "words",
    "image_url",
    "detail",
    "regex",
    "stop",
)  # and those that mean what they say; others are JSON

LARGE_BODY = 1 << 17  # bytes of a body, from which on one after another is parsed
MOST_VALUES = 20_000  # values of JSON in one body: 512 messages have a tenth of them

F = TypeVar("F", bound=Fields)


class JSONRoute(APIRoute):
    """A route whose body is JSON that is quick to parse."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, for requests of another class."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return handle_bounded


class _BoundedRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BODY:
            check_num_values(body)
            return _parsed(body)
        service: Service = self.app.state.service
        async with service.large_bodies:
            await asyncio.sleep(0)  # other requests come between: each step takes milliseconds
            check_num_values(body)
            await asyncio.sleep(0)
            value = _parsed(body)
            await asyncio.sleep(0)
        return value


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise Fault(400, "the body is nested too deeply to be read", code="invalid_json") from None


def check_num_values(body: bytes) -> None:
    """Raises a Fault where JSON has so many values that parsing them would hold up other requests."""
    if has_more_values(body, MOST_VALUES):
        raise Fault(
            400,
            f"the body has more than {MOST_VALUES:,} values of JSON, which is the limit: send shorter lists",
            code="invalid_json",
        )


async def read(request: Request, kind: type[F], most: int) -> tuple[F, bytes | None]:
    """The fields of a request, and the file that came with them, if one did; `most` bounds a part in bytes.

    Raises:
        RequestValidationError: as of a route that reads JSON alone.
        Fault: it is neither JSON nor a form, or it has several files.
    """
    type_ = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if type_ == "multipart/form-data":
        try:
            async with request.form(max_files=1, max_fields=2048, max_part_size=most) as form:
                return await _from_form(form, kind)
        except Fault:
            raise
        except HTTPException as error:
            why = str(error.detail).rstrip(".")
            raise Fault(
                400, f"the form cannot be read ({why}): send one file, {FILE}=@photo.jpg, and fields of text"
            ) from None
    if type_ != "application/json":
        raise Fault(400, f"the Content-Type is {type_[:100]!r}: send application/json or multipart/form-data")
    body = await request.body()
    check_num_values(body)
    try:
        return kind.model_validate_json(body), None
    except ValidationError as error:
        raise _invalid(error) from None


async def _from_form(form: FormData, kind: type[F]) -> tuple[F, bytes | None]:
    file: bytes | None = None
    fields: dict[str, Any] = {}
    for name in form:
        values = form.getlist(name)
        if any(isinstance(value, UploadFile) for value in values):
            if name != FILE:
                raise Fault(400, f"the file is called {name[:100]!r}: call it {FILE!r}", param=name[:100])
            (upload,) = values
            file = await upload.read()  # type: ignore[union-attr]  # a file, as was asked
        elif name == FILE:
            raise Fault(400, f"{FILE} is a text here: send the file itself ({FILE}=@photo.jpg)", param=FILE)
        else:
            fields[name] = _value(name, values)
    written = json.dumps(fields)
    check_num_values(written.encode())
    try:
        return kind.model_validate_json(written), file
    except ValidationError as error:
        raise _invalid(error) from None


def _value(name: str, values: list[Any]) -> Any:
    """What the texts of a form's field say: a list, a text, or JSON."""
    if name in LISTS:
        return values[0] if name in TEXTS and len(values) == 1 else values
    if len(values) > 1 or name in TEXTS:
        return values[0] if len(values) == 1 else values
    check_num_values(values[0].encode(errors="surrogatepass"))
    try:
        return json.loads(values[0])
    except (ValueError, RecursionError):
        return values[0]


def _invalid(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(
        [
            {**one, "loc": ("body", *one["loc"])}
            for one in error.errors(include_url=False, include_input=False)
        ]
    )
