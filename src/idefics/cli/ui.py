"""`idefics ui`: the page in the browser, for the owner of this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import typer

from idefics.cli import look
from idefics.cli.flags import Debug, ModelFlags, number, policy
from idefics.cli.output import Screen
from idefics.errors import MissingExtra
from idefics.server.sockets import bind, exit_on_sigterm, listen, url_of

HELP = """
Open a page in the browser: chat, caption, ask, classify, write, follow examples, and label whole folders.

Only this machine reaches it; `idefics serve --ui` serves the page to others too, behind a key. Pictures are fetched
from addresses of the open internet only, unless --remote-images says otherwise: a page is nearer to strangers than a
command line.
"""
EXAMPLES = ("idefics ui", "idefics ui --model demo --port 8080")
HOST = "127.0.0.1"


Port = Annotated[
    int,
    typer.Option(
        "--port",
        metavar="N",
        parser=number("--port", int),
        rich_help_panel="Address",
        help="Port to listen on; 0 takes a free one.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class PageFlags(ModelFlags):
    """The same, with another word where none is given."""

    remote_images: Annotated[
        str,
        typer.Option(
            "--remote-images",
            metavar="WHICH",
            envvar="IDEFICS_REMOTE_IMAGES",
            show_envvar=False,
            show_default=False,
            rich_help_panel="Model",
            parser=policy,
            help="Addresses that may be fetched, as in other commands; else "
            "$IDEFICS_REMOTE_IMAGES, else public.",
        ),
    ] = "public"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "ui", _ui, help=HELP, examples=EXAMPLES)


def _ui(context: typer.Context, port: Port = 7860, *, model: PageFlags, debug: Debug = False) -> int:
    with Screen(context.command_path) as screen, bind(HOST, port) as listener:
        exit_on_sigterm()
        try:
            import uvicorn

            from idefics.ui.app import application
            from idefics.ui.desk import Settings
            from idefics.ui.sliders import suggested
        except ModuleNotFoundError:
            raise MissingExtra("the page in the browser", "ui") from None
        from idefics import weights
        from idefics.processing.fetch import Fetcher

        if not debug:
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
        vlm = context.obj(model, screen)
        start = suggested(weights.find(model.model, revision=model.revision, offline=True))
        fetcher = Fetcher(policy=model.remote_images, strangers=True)
        app = application(vlm, Settings(model.model, fetcher, start=start))
        listen(listener)
        screen.say(f"the page is at {url_of(listener)}; Ctrl-C ends it")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
        return screen.code
