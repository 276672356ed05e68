"""`/health`, `/ready`, `/metrics`, and `/v1/models`: what the server says of itself."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from idefics.server.wiring import Serving, faults

STARTED = int(time.time())

router = APIRouter(tags=["Status"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive; needs no key."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "There is no room now."}})
async def ready(service: Serving) -> Response:
    """Whether a request would be let in now: 200, else 503."""
    has_room = service.admission.has_room
    return JSONResponse({"status": "ready" if has_room else "busy"}, 200 if has_room else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Serving) -> Response:
    """Counts and times in Prometheus' format; never a word of what anyone has said."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(service: Serving) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(service.settings.served)]}


@router.get("/v1/models/{name:path}", responses=faults())
async def model(name: str, service: Serving) -> dict[str, Any]:
    """The same, by its name."""
    service.check_model(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "idefics"}
