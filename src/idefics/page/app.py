"""Mounts the page on an ASGI application: one of its own for `idefics ui`, or the API server's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from idefics.demo import pictures as bundled
from idefics.page.backend import PageBackend, PageSettings
from idefics.page.blocks import build_blocks, theme_css_and_script
from idefics.page.request_filter import RequestFilter

if TYPE_CHECKING:
    from idefics import Idefics

ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
MAX_UPLOAD_BYTES = 512 * 2**20  # bytes of one file: a zip of pictures


def mount_page(app: FastAPI, vlm: Idefics, settings: PageSettings) -> PageBackend:
    """Mounts the page at `/` of an application; routes that were added before keep their paths.

    Args:
        app: the application.
        vlm: the model that answers.
        settings: the settings of the page.

    Returns:
        The backend that the tabs share.
    """
    backend = PageBackend(vlm, settings)
    # Inside an event loop: without one, Gradio creates some that it never closes.
    asyncio.run(_mount_blocks(app, backend))
    return backend


async def _mount_blocks(app: FastAPI, backend: PageBackend) -> None:
    """Builds the tabs and mounts them at `/`, with the request filter around Gradio."""
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
        **theme_css_and_script(),
    )
    # Mounting, unlike `launch`, leaves this False, and Gradio would then read any path that a browser names.
    blocks.has_launched = True


def create_page_app(vlm: Idefics, settings: PageSettings) -> FastAPI:
    """An application with the page alone, for `idefics ui`; it refuses requests under other names than localhost."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=ALLOWED_HOSTS)
    mount_page(app, vlm, settings)
    return app
