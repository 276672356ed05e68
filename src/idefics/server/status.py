"""`/health`, `/ready`, `/metrics`, and `/v1/models`: what the server says of itself."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from idefics.server.response_schemas import HealthResponse, ModelCard, ModelList, ReadyResponse
from idefics.server.routing import (
    COMMON_ERROR_STATUSES,
    ERROR_DESCRIPTIONS,
    ResponseDocs,
    ServerStateDep,
    document_responses,
)

START_TIME = int(time.time())

router = APIRouter(tags=["Status"])

# Errors are JSON where answers are not.
ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
TEXT_ROUTE_ERRORS: ResponseDocs = {
    status: {"description": ERROR_DESCRIPTIONS[status], "content": ERROR_CONTENT}
    for status in COMMON_ERROR_STATUSES
}


@router.get("/health", responses={200: {"model": HealthResponse}})
@router.head("/health", include_in_schema=False)
async def health() -> dict[str, str]:
    """The process is alive; needs no key."""
    return {"status": "ok"}


@router.get(
    "/ready",
    responses=document_responses(ReadyResponse, 503)
    | {503: {"model": ReadyResponse, "description": "There is no room now."}},
)
@router.head("/ready", include_in_schema=False)
async def ready(service: ServerStateDep) -> Response:
    """Whether a request would be let in now: 200, else 503."""
    has_room = service.admission.has_capacity
    return JSONResponse({"status": "ready" if has_room else "busy"}, 200 if has_room else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=TEXT_ROUTE_ERRORS)
async def metrics(service: ServerStateDep) -> Response:
    """Counts and times in Prometheus' format; never a word of what anyone has said."""
    return Response(service.metrics.to_prometheus_text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", responses=document_responses(ModelList, 401))
async def models(service: ServerStateDep) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model_card(service.settings.served_model_name)]}


@router.get("/v1/models/{name:path}", responses=document_responses(ModelCard, 404))
async def model(name: str, service: ServerStateDep) -> dict[str, Any]:
    """The same, by its name."""
    service.check_model(name)
    return _model_card(name)


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": START_TIME, "owned_by": "idefics"}
