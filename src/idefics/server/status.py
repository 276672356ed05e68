"""`/health`, `/ready`, `/metrics` and `/v1/models`."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from idefics.server.errors import ErrorBody
from idefics.server.model_card import ModelCard, model_card
from idefics.server.response_fields import ResponseFields
from idefics.server.routing import ERROR_DESCRIPTIONS, ServerStateDep, document_responses

START_TIME = int(time.time())

router = APIRouter(tags=["Status"])


class HealthResponse(ResponseFields):
    """The answer of `/health`: the process is running."""

    status: Literal["ok"]


class ReadyResponse(ResponseFields):
    """The answer of `/ready`: whether the server accepts another request."""

    status: Literal["ready", "busy"]


class ModelList(ResponseFields):
    """A list of the served model and of its adapters."""

    object: Literal["list"]
    data: list[ModelCard]


@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health() -> HealthResponse:
    """Answers while the process is running; needs no key."""
    return {"status": "ok"}


@router.get(
    "/ready",
    responses=document_responses(ReadyResponse)
    | {503: {"model": ReadyResponse, "description": "Server busy."}},
)
@router.head("/ready", include_in_schema=False)
async def ready(service: ServerStateDep) -> Response:
    """Answers with status 200 if a request would be accepted now, else 503."""
    has_capacity = service.admission.has_capacity
    response: ReadyResponse = {"status": "ready" if has_capacity else "busy"}
    return JSONResponse(response, 200 if has_capacity else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServerStateDep) -> Response:
    """Returns counts and times in Prometheus' format, without any content of requests."""
    return Response(service.metrics.to_prometheus_text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", responses=document_responses(ModelList))
async def models(service: ServerStateDep) -> ModelList:
    """Lists the served model and its adapters, which are models too."""
    names = [service.settings.served_model_name, *service.vlm.adapters]
    return {"object": "list", "data": [model_card(service, name, START_TIME) for name in names]}


@router.get(
    "/v1/models/{name:path}",
    responses=document_responses(ModelCard)
    | {404: {"model": ErrorBody, "description": ERROR_DESCRIPTIONS[404]}},
)
async def model(name: str, service: ServerStateDep) -> ModelCard:
    """Describes the model of that name: its limits and defaults."""
    service.find_adapter(name)
    return model_card(service, name, START_TIME)
