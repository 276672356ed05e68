"""`/health`, `/ready`, `/metrics`, and `/v1/models`: what the server says of itself."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from idefics.server.answers import HealthShape, ModelShape, ModelsShape, ReadyShape
from idefics.server.wiring import ANYWHERE, FAULTS, Serving, Statuses, described

STARTED = int(time.time())

router = APIRouter(tags=["Status"])

# Errors are JSON where answers are not.
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
TOLD_APART: Statuses = {status: {"description": FAULTS[status], "content": ERROR} for status in ANYWHERE}


@router.get("/health", responses={200: {"model": HealthShape}})
@router.head("/health", include_in_schema=False)
async def health() -> dict[str, str]:
    """The process is alive; needs no key."""
    return {"status": "ok"}


@router.get(
    "/ready",
    responses=described(ReadyShape, 503)
    | {503: {"model": ReadyShape, "description": "There is no room now."}},
)
@router.head("/ready", include_in_schema=False)
async def ready(service: Serving) -> Response:
    """Whether a request would be let in now: 200, else 503."""
    has_room = service.admission.has_room
    return JSONResponse({"status": "ready" if has_room else "busy"}, 200 if has_room else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=TOLD_APART)
async def metrics(service: Serving) -> Response:
    """Counts and times in Prometheus' format; never a word of what anyone has said."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", responses=described(ModelsShape, 401))
async def models(service: Serving) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(service.settings.served)]}


@router.get("/v1/models/{name:path}", responses=described(ModelShape, 404))
async def model(name: str, service: Serving) -> dict[str, Any]:
    """The same, by its name."""
    service.check_model(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "idefics"}
