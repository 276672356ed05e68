"""`idefics ui`: serves the page in the browser, to this machine only."""

from __future__ import annotations

import logging

from idefics.cli.command import command
from idefics.cli.flags import ModelFlags, flag, flag_group, remote_images_flag
from idefics.cli.loading import LoadModel
from idefics.cli.output import OutputWriter
from idefics.errors import MissingExtra
from idefics.server.sockets import bind_socket, exit_on_sigterm, socket_url, start_listening

HOST = "127.0.0.1"


@flag_group
class UIFlags:
    """The address of the page."""

    port: int = flag("Address", "Port to listen on; 0 takes a free one.  [default: 7860]", default=7860)


@flag_group
class UIModelFlags(ModelFlags):
    """The flags of the model, with "public" as the default of `--remote-images`."""

    remote_images: str = remote_images_flag(
        "public",
        "Addresses that may be fetched, as in other commands; else $IDEFICS_REMOTE_IMAGES, else public.",
    )


@command("idefics ui", "idefics ui --model demo --port 8080", has_json=False)
def ui(writer: OutputWriter, load_model: LoadModel, flags: UIFlags, model: UIModelFlags) -> None:
    """Serve a page for the browser with all tasks, chat and few-shot.

    Only this machine reaches it; `idefics serve --ui` serves the page to other machines too, and takes keys.

    Pictures are fetched from public internet addresses only, unless --remote-images says otherwise.
    """
    with bind_socket(HOST, flags.port) as listener:
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

        if not logging.getLogger("idefics").isEnabledFor(
            logging.DEBUG
        ):  # --debug has configured logging already
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
        vlm = load_model(model)
        start = read_checkpoint_sampling(
            weights.find_checkpoint(model.model, revision=model.revision, offline=True)
        )
        fetcher = Fetcher(policy=model.remote_images, untrusted=True)
        app = create_page_app(vlm, PageSettings(model.model, fetcher, initial_sampling=start))
        start_listening(listener)
        writer.print_status(f"the page is at {socket_url(listener)}; Ctrl-C stops it")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
