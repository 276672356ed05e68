"""`idefics serve`: serves a model over OpenAI's API."""

from __future__ import annotations

import logging
from dataclasses import Field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from idefics.cli.command import command
from idefics.cli.flags import ModelFlags, flag
from idefics.cli.loading import LoadModel
from idefics.cli.output import OutputWriter
from idefics.errors import MissingExtra
from idefics.server.settings import ENVIRONMENT_PREFIX, Settings, read_settings
from idefics.server.sockets import bind_socket, exit_on_sigterm, socket_url, start_listening

if TYPE_CHECKING:
    from fastapi import FastAPI

    from idefics import Idefics

SETTING_TYPES = get_type_hints(Settings)


def _setting_flag(setting: Field[Any]) -> tuple[str, Any, Any]:
    """The flag of a server setting; its default None leaves the setting to the environment and the file."""
    default = "" if setting.default in (None, False) else f" [default: {setting.default}]"
    metadata = setting.metadata
    return (
        setting.name,
        SETTING_TYPES[setting.name] | None,
        flag(metadata["section"], metadata["help"] + default),
    )


config_flag = flag(
    "File", "TOML file of settings; else $IDEFICS_CONFIG.", envvar=f"{ENVIRONMENT_PREFIX}CONFIG"
)
ServeFlags: Any = make_dataclass(
    "ServeFlags", [*map(_setting_flag, fields(Settings)), ("config", Path | None, config_flag)]
)


@command(
    "idefics serve",
    "idefics serve --model demo --port 8001",
    "idefics serve --host 0.0.0.0 --api-key-file keys.txt --remote-images public",
    "idefics serve --config server.toml",
    has_json=False,
)
def serve(writer: OutputWriter, load_model: LoadModel, flags: ServeFlags) -> None:
    """Serve a model over HTTP to OpenAI clients.

    The API has chat completions, completions, responses, and a route for each task. Every flag may also be given as an
    environment variable (IDEFICS_PORT=8001) or in a TOML file (port = 8001). Flags override the environment,
    which overrides the file. docs/server.md describes the API, with examples for clients.
    """
    given = {name: value for name, value in vars(flags).items() if value is not None}
    config_file = given.pop("config", None)
    settings = read_settings(given, config_file)
    settings.api_keys  # noqa: B018  # reads their file before the model is loaded
    with bind_socket(settings.host, settings.port) as listener:
        exit_on_sigterm()
        try:
            from idefics.server.app import create_app
            from idefics.server.uvicorn_server import run_server
        except ModuleNotFoundError:
            raise MissingExtra("the server", "serve") from None
        if not logging.getLogger("idefics").isEnabledFor(
            logging.DEBUG
        ):  # --debug has configured logging already
            logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
            for part in ("idefics.server", "idefics.engine"):  # requests, and why a slower decode step runs
                logging.getLogger(part).setLevel(logging.INFO)
        # The settings that are also flags of other commands.
        vlm = load_model(
            ModelFlags(
                **{
                    one.name: getattr(settings, one.name)
                    for one in fields(ModelFlags)
                    if one.name in SETTING_TYPES
                }
            )
        )
        app = create_app(vlm, settings)
        if settings.ui:
            _mount_page(app, vlm, settings, socket_url(listener))
        start_listening(listener)  # from here on connections are queued, not refused
        writer.print_status(
            f"{settings.served_model_name} is served at {socket_url(listener)}; Ctrl-C stops it"
        )
        run_server(app, listener)


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
                weights.find_checkpoint(settings.model, revision=settings.revision, offline=True)
            ),
            admission_slot=app.state.service.admission.hold_page_slot,
        ),
    )
