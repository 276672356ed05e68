"""The page on an application: on one of its own for `idefics ui`, or on the server's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from idefics.demo import pictures as bundled
from idefics.page.backend import PageBackend, PageSettings
from idefics.page.blocks import build_blocks, theme_and_style
from idefics.page.request_filter import RequestFilter

if TYPE_CHECKING:
    from idefics import Idefics

ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
MAX_UPLOAD_BYTES = 512 * 2**20  # bytes of one file: a zip of pictures


def mount_page(app: FastAPI, vlm: Idefics, settings: PageSettings) -> PageBackend:
    """Puts the page at `/` of an application. What the application has at other paths by then stays as it is."""
    backend = PageBackend(vlm, settings)
    asyncio.run(
        _mount_blocks(app, backend)
    )  # where no event loop runs, Gradio makes some that it never closes
    return backend


async def _mount_blocks(app: FastAPI, backend: PageBackend) -> None:
    blocks = build_blocks(backend)
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        app_kwargs={"middleware": [Middleware(RequestFilter)]},
        allowed_paths=[str(bundled()[0].parent)],
        max_file_size=MAX_UPLOAD_BYTES,
        show_error=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        footer_links=[],
        **theme_and_style(),
    )
    # `launch` sets it and mounting does not; without it Gradio reads whatever path a browser names.
    blocks.has_launched = True


def create_page_app(vlm: Idefics, settings: PageSettings) -> FastAPI:
    """The page alone, for the owner of this machine: other sites and machines cannot reach it by any name."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=ALLOWED_HOSTS)
    mount_page(app, vlm, settings)
    return app
