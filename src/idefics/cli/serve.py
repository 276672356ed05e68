"""`idefics serve` and `idefics ui`: serve a model over OpenAI's API, and the page in the browser."""

from __future__ import annotations

import logging
import threading
from dataclasses import Field, asdict, fields, make_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_type_hints

from idefics.cli.command import LoadModel, command
from idefics.cli.flags import ModelFlags, flag, flag_group, model_flag, remote_images_flag, values_for
from idefics.cli.output import OutputWriter
from idefics.errors import MissingExtra
from idefics.server.batch_folder import BatchFolder
from idefics.server.settings import ENVIRONMENT_PREFIX, Settings, read_settings
from idefics.server.sockets import bind_socket, exit_on_sigterm, socket_url, start_listening

if TYPE_CHECKING:
    from fastapi import FastAPI

    from idefics import Idefics

SETTING_TYPES = get_type_hints(Settings)
UI_DRAIN_SECONDS = 1.0  # for answers of the page after Ctrl-C


def _setting_flag(setting: Field[Any]) -> tuple[str, Any, Any]:
    """The flag of a server setting as (name, type, field) of a dataclass.

    Its default is None, with which the environment and the file of settings decide.
    """
    default = "" if setting.default in (None, False) else f" [default: {setting.default}]"
    metadata = setting.metadata
    option = {} if metadata["metavar"] is None else {"metavar": metadata["metavar"]}
    return (
        setting.name,
        SETTING_TYPES[setting.name] | None,
        flag(metadata["section"], metadata["help"] + default, **option),
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
    if settings.batches is not None:
        BatchFolder(settings.batches).close()  # tries the folder
    if settings.ray is not None:
        _serve_on_ray(writer, settings)
        return
    with bind_socket(settings.host, settings.port) as listener:
        exit_on_sigterm()
        try:
            from idefics.server.uvicorn_server import run_server
        except ModuleNotFoundError:
            raise MissingExtra("the server", "serve") from None
        # Requests, and why a slower decode step runs.
        _configure_logging("%(asctime)s %(message)s", "idefics.server", "idefics.engine")
        app = _create_app(load_model(_model_flags(settings)), settings)
        start_listening(listener)  # from here on connections are queued, not refused
        writer.print_status(
            f"{settings.served_model_name} is served at {socket_url(listener)}; Ctrl-C stops it"
        )
        run_server(app, listener)


def _serve_on_ray(writer: OutputWriter, settings: Settings) -> None:
    """Serves with replicas on a Ray cluster until SIGTERM or Ctrl-C."""
    try:
        from idefics.server.ray_serve import serve_on_ray
    except ModuleNotFoundError:
        raise MissingExtra("the server", "serve") from None
    exit_on_sigterm()
    with serve_on_ray(settings, asdict(_model_flags(settings))) as url:
        writer.print_status(f"{settings.served_model_name} is served at {url}; Ctrl-C stops it")
        threading.Event().wait()


@flag_group
class ServedModelFlags(ModelFlags):
    """The settings of the model, as keywords of `idefics.load`."""

    adapters: dict[str, str]


def _model_flags(settings: Settings) -> ServedModelFlags:
    """The settings that are also flags of other commands, and the adapters."""
    values = values_for(ModelFlags, settings) | {"offline": settings.offline or None}
    return ServedModelFlags(**values, adapters=settings.adapter_by_name)


@flag_group
class UIFlags:
    """The flags of `idefics ui` other than the model's: the port."""

    port: int = flag("Address", "Port to listen on; 0 takes a free one.  [default: 7860]", default=7860)


@flag_group
class UIModelFlags(ModelFlags):
    """The flags of the model, with other defaults of `--feature-cache` and `--remote-images`."""

    feature_cache: bool = model_flag(
        "Keep encoded pictures in files, as in other commands; off unless given, as the page keeps no pictures.",
        default=False,
        names="--feature-cache/--no-feature-cache",
    )

    remote_images: str = remote_images_flag(
        "public",
        "Addresses that may be fetched, as in other commands; else $IDEFICS_REMOTE_IMAGES, else public.",
    )


@command("idefics ui", "idefics ui --model demo --port 8080", has_json=False)
def ui(writer: OutputWriter, load_model: LoadModel, flags: UIFlags, model: UIModelFlags) -> None:
    """Serve a page for the browser with all tasks, chat, examples and batches.

    Only this machine reaches it; `idefics serve --ui` serves the page to other machines too, and takes keys. The page
    is a client of the API, which is served with it.

    Pictures are fetched from public internet addresses only, unless --remote-images says otherwise. Files of batches
    are deleted when the command ends.
    """
    with (
        bind_socket("127.0.0.1", flags.port) as listener,
        TemporaryDirectory(prefix="idefics-batches-") as batches,
    ):
        settings = _make_ui_settings(model, Path(batches))
        exit_on_sigterm()
        try:
            from idefics.server.uvicorn_server import run_server
        except ModuleNotFoundError:
            raise MissingExtra("the page in the browser", "serve") from None
        _configure_logging("%(message)s")
        app = _create_app(load_model(model), settings)
        start_listening(listener)
        writer.print_status(f"the page is at {socket_url(listener)}; Ctrl-C stops it")
        run_server(app, listener)


def _make_ui_settings(model: UIModelFlags, batches: Path) -> Settings:
    """The settings of the server of `idefics ui`."""
    shared = values_for(Settings, model) | {"offline": bool(model.offline)}
    return Settings(**shared, ui=True, batches=batches, drain=UI_DRAIN_SECONDS)


def _create_app(vlm: Idefics, settings: Settings) -> FastAPI:
    """The application of the server, with the page if the settings say so."""
    from idefics.page.static_files import mount_page
    from idefics.server.app import create_app

    app = create_app(vlm, settings)
    if settings.ui:
        mount_page(app)
    return app


def _configure_logging(format: str, *verbose_loggers: str) -> None:
    """Logs warnings, and messages of level INFO of `verbose_loggers`, in a format of `logging`.

    Does nothing where --debug configured logging.
    """
    if not logging.getLogger("idefics").isEnabledFor(logging.DEBUG):
        logging.basicConfig(format=format, level=logging.WARNING)
        for name in verbose_loggers:
            logging.getLogger(name).setLevel(logging.INFO)
