"""Parameters that FastAPI passes to routes, and the descriptions of what routes answer."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Request
from pydantic import TypeAdapter

from idefics.server.errors import ErrorBody
from idefics.server.middleware import CONTEXT_SCOPE_KEY
from idefics.server.request_context import RequestContext
from idefics.server.server_state import ServerState

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
