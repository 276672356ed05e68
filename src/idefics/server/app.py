"""Creates the ASGI app: all routes behind the middleware, over one loaded model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from idefics import __version__
from idefics.server import (
    batch_report,
    batches,
    chat,
    completions,
    explanations,
    files,
    images,
    responses,
    status,
    tasks,
)
from idefics.server.batch_folder import BatchFolder
from idefics.server.batch_queue import BatchQueue
from idefics.server.docs_page import SECURITY_HEADERS, render_docs_page
from idefics.server.errors import APIError, handle_error
from idefics.server.middleware import AccessMiddleware
from idefics.server.routing import document_errors, move_schema_definitions
from idefics.server.server_state import ServerState
from idefics.server.settings import Settings

if TYPE_CHECKING:
    from idefics import Idefics

REQUEST_ID_HEADER_DOC = {
    "description": "Id of the request: the client's x-request-id, or a new one. The server's log has it too.",
    "schema": {"type": "string"},
}


def create_app(vlm: Idefics, settings: Settings) -> FastAPI:
    """Creates the app. `app.state.service` is its `ServerState`.

    Args:
        vlm: the loaded model, which all requests share.
        settings: the settings of the server; those of the model are not used.

    Raises:
        BadSetting: the file of keys cannot be read, or the folder of batches cannot be used.
    """
    service = ServerState(vlm, settings)
    app = FastAPI(
        title="idefics",
        version=__version__,
        summary="Questions about pictures.",
        exception_handlers=dict.fromkeys((HTTPException, RequestValidationError), handle_error),
        openapi_url=None,  # also turns off FastAPI's pages, which load scripts from another host
    )
    app.state.service = service
    for path, serve_description in (("/docs", _serve_docs_page), ("/openapi.json", _serve_openapi)):
        app.add_api_route(path, serve_description, methods=["GET", "HEAD"], include_in_schema=False)
    for route_module in (chat, completions, responses, tasks, explanations, images, status):
        app.include_router(route_module.router)
    if settings.batches is not None:
        _add_batches(app, service, settings.batches)
    else:
        _refuse_batches(app)
    app.add_middleware(AccessMiddleware, service=service, keys=settings.api_keys)
    return app


def _add_batches(app: FastAPI, service: ServerState, path: Path) -> None:
    """Adds the routes of files and batches; batches are carried out while the app runs.

    Raises:
        BadSetting: the folder cannot be used.
    """
    folder = app.state.batch_folder = BatchFolder(path)
    queue = app.state.batch_queue = BatchQueue(app, service, folder)
    app.include_router(files.router)
    app.include_router(batches.router)
    app.include_router(batch_report.router)

    @asynccontextmanager
    async def run_queue(_: FastAPI) -> AsyncIterator[None]:
        queue.start()
        try:
            yield
        finally:
            await queue.close()
            folder.close()

    app.router.lifespan_context = run_queue


def _refuse_batches(app: FastAPI) -> None:
    """Adds a route that says how files and batches are turned on."""

    def refuse() -> None:
        raise APIError(404, "this server has no files and batches: start it with --batches FOLDER")

    for path in ("/v1/files", "/v1/batches"):
        for suffix in ("", "/{rest:path}"):
            methods = ["DELETE", "GET", "POST"]
            app.add_api_route(path + suffix, refuse, methods=methods, include_in_schema=False)


async def _serve_docs_page(request: Request) -> HTMLResponse:
    """Answers `/docs` with the OpenAPI description as HTML."""
    return HTMLResponse(render_docs_page(_build_openapi(request.app)), headers=SECURITY_HEADERS)


async def _serve_openapi(request: Request) -> JSONResponse:
    """Answers `/openapi.json` with the OpenAPI description."""
    return JSONResponse(_build_openapi(request.app))


def _build_openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI description of the app, with x-request-id and without status 422: invalid requests get 400."""
    document = app.openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            if path != "/health":
                document_errors(operation["responses"], method)
            for response in operation["responses"].values():
                response["headers"] = {"x-request-id": REQUEST_ID_HEADER_DOC}
    move_schema_definitions(document["paths"], document["components"]["schemas"])
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
