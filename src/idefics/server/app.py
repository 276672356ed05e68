"""The app: routes behind the gate, over one loaded model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from idefics import __version__
from idefics.server import chat, completions, faults, responses, status, tasks
from idefics.server.docs_page import HEADERS, docs_page
from idefics.server.gate import Gate
from idefics.server.settings import Settings
from idefics.server.visit import Service

if TYPE_CHECKING:
    from idefics import Idefics

ID = {
    "description": "The id of the request, as the client sent it in x-request-id, or a new one; the log has it too.",
    "schema": {"type": "string"},
}


def create_app(vlm: Idefics, settings: Settings) -> FastAPI:
    """OpenAI's API over a loaded model, which all requests share.

    `app.state.service` is what they share; its `admission.close` lets nobody in any more.

    Raises:
        BadSetting: the file of keys cannot be read.
    """
    service = Service(vlm, settings)
    app = FastAPI(
        title="idefics",
        version=__version__,
        summary="Questions about pictures.",
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.openapi = partial(_description, app)  # type: ignore[method-assign]
    faults.install(app)
    app.add_route("/docs", _docs, include_in_schema=False)
    for part in (chat, completions, responses, tasks, status):
        app.include_router(part.router)
    app.add_middleware(Gate, service=service, keys=settings.keys())
    return app


async def _docs(request: Request) -> HTMLResponse:
    """The description as a page for people."""
    return HTMLResponse(docs_page(request.app.openapi()), headers=HEADERS)


def _description(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description of the app, where a wrong request is a 400, and each answer has its request's id."""
    said = FastAPI.openapi(app)
    for route in said["paths"].values():
        for method in route.values():
            method["responses"].pop("422", None)
            for answer in method["responses"].values():
                answer["headers"] = {"x-request-id": ID}
    for name in ("HTTPValidationError", "ValidationError"):
        said["components"]["schemas"].pop(name, None)
    return said
