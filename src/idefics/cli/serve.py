"""`idefics serve`: a model behind OpenAI's API."""

from __future__ import annotations

import logging
from dataclasses import Field, fields, make_dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from idefics.cli import look
from idefics.cli.flags import Debug, ModelFlags
from idefics.cli.output import Screen
from idefics.errors import MissingExtra
from idefics.server.settings import PREFIX, Settings, read
from idefics.server.sockets import bind, exit_on_sigterm, listen, url_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from idefics import Idefics

HELP = f"""
Serve a model to OpenAI clients: chat completions, completions, responses, and a route for each task.

Every flag may also be given as an environment variable ({PREFIX}PORT=8001) or in a TOML file (port = 8001).
Flags override the environment, which overrides the file. docs/server.md lists all, with examples for clients.
"""
EXAMPLES = (
    "idefics serve",
    "idefics serve --model demo --port 8001",
    "idefics serve --host 0.0.0.0 --api-key-file keys.txt --remote-images public",
    "idefics serve --config server.toml",
)
PLAIN = {bool: None, int: "N", float: "SECONDS", str: "TEXT", Path: "FILE"}  # what flags call their values

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar=f"{PREFIX}CONFIG",
        show_envvar=False,
        help="TOML file of settings; else $IDEFICS_CONFIG.",
        rich_help_panel="File",
    ),
]


def _flag(one: Field[Any], hint: Any) -> tuple[str, Any, None]:
    """A setting as a flag; what is not given is left to the environment and the file."""
    (kind,) = {*(get_args(hint) or (hint,))} - {NoneType}
    default = "" if one.default in (None, False) else f" [default: {one.default}]"
    option = typer.Option(
        "--" + one.name.replace("_", "-"),
        metavar=PLAIN[kind],
        help=one.metadata["help"] + default,
        show_default=False,
        rich_help_panel=one.metadata["section"],
    )
    return one.name, Annotated[kind | None, option], None


HINTS = get_type_hints(Settings)
Flags: Any = make_dataclass(
    "Flags",
    [
        (name, hint, default)
        for name, hint, default in (_flag(one, HINTS[one.name]) for one in fields(Settings))
    ],
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "serve", _serve, help=HELP, examples=EXAMPLES)


def _serve(context: typer.Context, *, given: Flags, config: Config = None, debug: Debug = False) -> int:
    said = {one.name: value for one in fields(Settings) if (value := getattr(given, one.name)) is not None}
    settings = read(said, config)
    settings.keys()
    with bind(settings.host, settings.port) as listener, Screen(context.command_path) as screen:
        exit_on_sigterm()
        try:
            from idefics.server.app import create_app
            from idefics.server.run import run
        except ModuleNotFoundError:
            raise MissingExtra("idefics serve", "serve") from None
        if not logging.getLogger("idefics").isEnabledFor(logging.DEBUG):  # else --debug shows it already
            logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
            for part in ("idefics.server", "idefics.engine"):  # requests, and why a slower step is taken
                logging.getLogger(part).setLevel(logging.INFO)
        vlm = _load(context, settings, screen)
        app = create_app(vlm, settings)
        if settings.ui:
            _add_page(app, vlm, settings, url_of(listener))
        listen(listener)  # from here on clients wait, and are not refused
        screen.say(f"{settings.served} is served at {url_of(listener)}; Ctrl-C ends it")
        run(app, listener)
        return screen.code


def _add_page(app: FastAPI, vlm: Idefics, settings: Settings, url: str) -> None:
    """Puts the page at /, behind the same key and within the same limits."""
    try:
        from idefics.ui import desk
        from idefics.ui.app import mount
        from idefics.ui.sliders import suggested
    except ModuleNotFoundError:
        raise MissingExtra("idefics serve --ui", "ui") from None
    from idefics import weights
    from idefics.processing.fetch import Fetcher
    from idefics.server.guests import admitted

    mount(
        app,
        vlm,
        desk.Settings(
            model=settings.served,
            fetcher=Fetcher(policy=settings.remote_images, strangers=True),
            server=url,
            has_key=bool(settings.keys()),
            start=suggested(weights.find(settings.model, revision=settings.revision, offline=True)),
            admit=partial(admitted, app.state.service.admission),
        ),
    )


def _load(context: typer.Context, settings: Settings, screen: Screen) -> Idefics:
    shared = {one.name: getattr(settings, one.name) for one in fields(ModelFlags) if one.name in HINTS}
    vlm: Idefics = context.obj(ModelFlags(**shared), screen)
    return vlm
