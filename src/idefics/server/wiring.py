"""What routes are given: the service and their visit; and how their errors are described."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Request
from pydantic import BaseModel

from idefics.server.events import PIECES
from idefics.server.gate import VISIT
from idefics.server.visit import Service, Visit


class ErrorField(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorField


Statuses = dict[int | str, dict[str, Any]]

FAULTS = {
    400: "The request is wrong; the message says what.",
    401: "The API key is missing or wrong.",
    403: "A web page of another origin sends it, which the server does not allow.",
    404: "There is no such model.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    415: "The body is packed.",
    421: "The server is not called so.",
    429: "There is no room now: ask again after Retry-After seconds.",
    431: "There are too many headers.",
    500: "Something went wrong in the server.",
    503: "The server is shutting down.",
}
ANYWHERE = (401, 403, 421, 431, 500)  # even where nothing is sent


def described(shape: type[BaseModel], *statuses: int, streams: bool = False) -> Statuses:
    """What a route may answer, for the API's description.

    Args:
        shape: of its JSON.
        statuses: of its errors, beside those of all routes; none stands for all.
        streams: whether the answer may also come in pieces.
    """
    faults = {
        status: {"model": ErrorBody, "description": FAULTS[status]}
        for status in sorted({*ANYWHERE, *(statuses or FAULTS)})
    }
    pieces = {"content": PIECES} if streams else {}
    return {200: {"model": shape, "description": shape.__doc__ or "", **pieces}, **faults}


async def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


async def _visit(request: Request) -> Visit:
    return cast("Visit", request.scope[VISIT])


Serving = Annotated[Service, Depends(_service)]
Visiting = Annotated[Visit, Depends(_visit)]
