"""What routes are given: the service and their visit; and how their errors are described."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Request
from pydantic import BaseModel

from idefics.server.middleware import CONTEXT_SCOPE_KEY
from idefics.server.request_context import RequestContext, ServerState
from idefics.server.sse import EVENT_STREAM_CONTENT


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


ResponseDocs = dict[int | str, dict[str, Any]]

ERROR_DESCRIPTIONS = {
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
COMMON_ERROR_STATUSES = (401, 403, 421, 431, 500)  # even where nothing is sent


def document_responses(
    response_model: type[BaseModel], *error_statuses: int, can_stream: bool = False
) -> ResponseDocs:
    """What a route may answer, for the API's description.

    Args:
        response_model: of its JSON.
        error_statuses: of its errors, beside those of all routes; none stands for all.
        can_stream: whether the answer may also come in pieces.
    """
    error_docs = {
        status: {"model": ErrorBody, "description": ERROR_DESCRIPTIONS[status]}
        for status in sorted({*COMMON_ERROR_STATUSES, *(error_statuses or ERROR_DESCRIPTIONS)})
    }
    stream_content = {"content": EVENT_STREAM_CONTENT} if can_stream else {}
    return {
        200: {"model": response_model, "description": response_model.__doc__ or "", **stream_content},
        **error_docs,
    }


async def _get_server_state(request: Request) -> ServerState:
    return cast("ServerState", request.app.state.service)


async def _get_request_context(request: Request) -> RequestContext:
    return cast("RequestContext", request.scope[CONTEXT_SCOPE_KEY])


ServerStateDep = Annotated[ServerState, Depends(_get_server_state)]
RequestContextDep = Annotated[RequestContext, Depends(_get_request_context)]
