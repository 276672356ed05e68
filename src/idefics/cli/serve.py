"""`idefics serve`: serves a model over OpenAI's API."""

from __future__ import annotations

import logging
from dataclasses import Field, fields, make_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from idefics.cli import help_format
from idefics.cli.flags import DebugFlag, ModelFlags
from idefics.cli.output import OutputWriter
from idefics.errors import MissingExtra
from idefics.server.settings import ENVIRONMENT_PREFIX, Settings, read_settings
from idefics.server.sockets import bind_socket, exit_on_sigterm, socket_url, start_listening

if TYPE_CHECKING:
    from fastapi import FastAPI

    from idefics import Idefics

HELP = f"""
Serve a model over HTTP to OpenAI clients.

The API has chat completions, completions, responses, and a route for each task. Every flag may also be given as an
environment variable ({ENVIRONMENT_PREFIX}PORT=8001) or in a TOML file (port = 8001). Flags override the environment,
which overrides the file. docs/server.md describes the API, with examples for clients.
"""
EXAMPLES = (
    "idefics serve",
    "idefics serve --model demo --port 8001",
    "idefics serve --host 0.0.0.0 --api-key-file keys.txt --remote-images public",
    "idefics serve --config server.toml",
)
# The placeholder for a flag's value in the help.
METAVAR_BY_TYPE = {bool: None, int: "N", float: "SECONDS", str: "TEXT", Path: "FILE"}

ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
        show_envvar=False,
        help="TOML file of settings; else $IDEFICS_CONFIG.",
        rich_help_panel="File",
    ),
]


def _setting_flag(setting: Field[Any], hint: Any) -> tuple[str, Any, None]:
    """The flag of a server setting; its default None leaves the setting to the environment and the file."""
    (value_type,) = {*(get_args(hint) or (hint,))} - {NoneType}
    default = "" if setting.default in (None, False) else f" [default: {setting.default}]"
    option = typer.Option(
        "--" + setting.name.replace("_", "-"),
        metavar=METAVAR_BY_TYPE[value_type],
        help=setting.metadata["help"] + default,
        show_default=False,
        rich_help_panel=setting.metadata["section"],
    )
    return setting.name, Annotated[value_type | None, option], None


SETTING_TYPES = get_type_hints(Settings)
SettingFlags: Any = make_dataclass(
    "Flags",
    [
        (name, hint, default)
        for name, hint, default in (_setting_flag(one, SETTING_TYPES[one.name]) for one in fields(Settings))
    ],
)


def register(app: typer.Typer) -> None:
    """Adds the command `idefics serve` to the application."""
    help_format.add_command(app, "serve", _serve, help=HELP, examples=EXAMPLES)


def _serve(
    context: typer.Context,
    *,
    setting_flags: SettingFlags,
    config: ConfigFlag = None,
    debug: DebugFlag = False,
) -> int:
    """Runs the command: serves until SIGTERM or Ctrl-C, and returns the exit code."""
    given_settings = {
        one.name: value for one in fields(Settings) if (value := getattr(setting_flags, one.name)) is not None
    }
    settings = read_settings(given_settings, config)
    settings.api_keys  # noqa: B018  # reads their file before the model is loaded
    with bind_socket(settings.host, settings.port) as listener, OutputWriter(context.command_path) as writer:
        exit_on_sigterm()
        try:
            from idefics.server.app import create_app
            from idefics.server.uvicorn_server import run_server
        except ModuleNotFoundError:
            raise MissingExtra("the server", "serve") from None
        if not debug:  # --debug has configured logging already
            logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
            for part in ("idefics.server", "idefics.engine"):  # requests, and why a slower decode step runs
                logging.getLogger(part).setLevel(logging.INFO)
        vlm = _load_model(context, settings, writer)
        app = create_app(vlm, settings)
        if settings.ui:
            _mount_page(app, vlm, settings, socket_url(listener))
        start_listening(listener)  # from here on connections are queued, not refused
        writer.print_status(
            f"{settings.served_model_name} is served at {socket_url(listener)}; Ctrl-C stops it"
        )
        run_server(app, listener)
        return writer.exit_code


def _mount_page(app: FastAPI, vlm: Idefics, settings: Settings, url: str) -> None:
    """Adds the page at `/`, with the same keys and the same limits as the API."""
    try:
        from idefics.page import backend
        from idefics.page.app import mount_page
        from idefics.page.generation_controls import read_checkpoint_sampling
    except ModuleNotFoundError:
        raise MissingExtra("the page in the browser", "ui") from None
    from idefics import weights
    from idefics.processing.fetch import Fetcher

    mount_page(
        app,
        vlm,
        backend.PageSettings(
            model=settings.served_model_name,
            fetcher=Fetcher(policy=settings.remote_images, untrusted=True),
            server_url=url,
            has_key=settings.has_key,
            initial_sampling=read_checkpoint_sampling(
                weights.find(settings.model, revision=settings.revision, offline=True)
            ),
            admission_slot=app.state.service.admission.hold_page_slot,
        ),
    )


def _load_model(context: typer.Context, settings: Settings, writer: OutputWriter) -> Idefics:
    """Loads the model with those settings that are also flags of other commands."""
    model_flags = {
        one.name: getattr(settings, one.name) for one in fields(ModelFlags) if one.name in SETTING_TYPES
    }
    vlm: Idefics = context.obj(ModelFlags(**model_flags), writer)
    return vlm
