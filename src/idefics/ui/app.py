"""The page on an application: on one of its own for `idefics ui`, or on the server's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from idefics.demo import pictures as bundled
from idefics.ui.desk import Desk, Settings
from idefics.ui.guard import Guard
from idefics.ui.page import look, page

if TYPE_CHECKING:
    from idefics import Idefics

HOSTS = ["127.0.0.1", "localhost", "[::1]"]
MOST_UPLOAD = 512 * 2**20  # bytes of one file: a zip of pictures


def mount(app: FastAPI, vlm: Idefics, settings: Settings) -> Desk:
    """Puts the page at `/` of an application. What the application has at other paths by then stays as it is."""
    desk = Desk(vlm, settings)
    asyncio.run(_mounted(app, desk))  # where no event loop runs, Gradio makes some that it never closes
    return desk


async def _mounted(app: FastAPI, desk: Desk) -> None:
    blocks = page(desk)
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        app_kwargs={"middleware": [Middleware(Guard)]},
        allowed_paths=[str(bundled()[0].parent)],
        max_file_size=MOST_UPLOAD,
        show_error=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        footer_links=[],
        **look(),
    )
    # `launch` sets it and mounting does not; without it Gradio reads whatever path a browser names.
    blocks.has_launched = True


def application(vlm: Idefics, settings: Settings) -> FastAPI:
    """The page alone, for the owner of this machine: other sites and machines cannot reach it by any name."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    mount(app, vlm, settings)
    return app
