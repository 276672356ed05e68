"""`idefics ui`: serves the page in the browser, to this machine only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import typer

from idefics.cli import help_format
from idefics.cli.flags import DebugFlag, ModelFlags, check_remote_images_flag, number_parser
from idefics.cli.output import OutputWriter
from idefics.errors import MissingExtra
from idefics.server.sockets import bind_socket, exit_on_sigterm, socket_url, start_listening

HELP = """
Serve a page for the browser with all tasks, chat and few-shot.

Only this machine reaches it; `idefics serve --ui` serves the page to other machines too, and takes keys.

Pictures are fetched from public internet addresses only, unless --remote-images says otherwise.
"""
EXAMPLES = ("idefics ui", "idefics ui --model demo --port 8080")
HOST = "127.0.0.1"


PortFlag = Annotated[
    int,
    typer.Option(
        "--port",
        metavar="N",
        parser=number_parser("--port", int),
        rich_help_panel="Address",
        help="Port to listen on; 0 takes a free one.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class UIModelFlags(ModelFlags):
    """The flags of the model, with "public" as the default of `--remote-images`."""

    remote_images: Annotated[
        str,
        typer.Option(
            "--remote-images",
            metavar="WHICH",
            envvar="IDEFICS_REMOTE_IMAGES",
            show_envvar=False,
            show_default=False,
            rich_help_panel="Model",
            parser=check_remote_images_flag,
            help="Addresses that may be fetched, as in other commands; else "
            "$IDEFICS_REMOTE_IMAGES, else public.",
        ),
    ] = "public"


def register(app: typer.Typer) -> None:
    """Adds the command `idefics ui` to the application."""
    help_format.add_command(app, "ui", _ui, help=HELP, examples=EXAMPLES)


def _ui(
    context: typer.Context, port: PortFlag = 7860, *, model: UIModelFlags, debug: DebugFlag = False
) -> int:
    """Runs the command: serves the page until SIGTERM or Ctrl-C, and returns the exit code."""
    with OutputWriter(context.command_path) as writer, bind_socket(HOST, port) as listener:
        exit_on_sigterm()
        try:
            import uvicorn

            from idefics.page.app import create_page_app
            from idefics.page.backend import PageSettings
            from idefics.page.generation_controls import read_checkpoint_sampling
        except ModuleNotFoundError:
            raise MissingExtra("the page in the browser", "ui") from None
        from idefics import weights
        from idefics.processing.fetch import Fetcher

        if not debug:
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
        vlm = context.obj(model, writer)
        start = read_checkpoint_sampling(weights.find(model.model, revision=model.revision, offline=True))
        fetcher = Fetcher(policy=model.remote_images, untrusted=True)
        app = create_page_app(vlm, PageSettings(model.model, fetcher, initial_sampling=start))
        start_listening(listener)
        writer.print_status(f"the page is at {socket_url(listener)}; Ctrl-C stops it")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
        return writer.exit_code
