"""Loads a model for a command, with a progress display on standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from idefics.cli.flags import ModelFlags
from idefics.cli.output import OutputWriter
from idefics.cli.process import paused_garbage_collection

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.weights import ProgressCallback

ModelLoader = Callable[[ModelFlags, OutputWriter], "Idefics"]
LoadModel = Callable[[ModelFlags], "Idefics"]  # a `ModelLoader` that has its writer


def load(flags: ModelFlags, writer: OutputWriter) -> Idefics:
    """Loads the model that the flags name. If it is not on this machine, announces the download and shows progress."""
    import idefics

    writer.progress.start(f"Loading {flags.model}")
    settings = asdict(flags) | {"offline": flags.offline or None}  # None leaves it to the environment
    with paused_garbage_collection():  # most of the time is the import of torch
        vlm = idefics.load(**settings, progress=download_progress_callback(flags.model, writer))
    writer.progress.stop()
    return vlm


def download_progress_callback(model: str, writer: OutputWriter) -> ProgressCallback:
    """A callback `(bytes done, bytes total)` that announces a download and shows its progress."""

    def report(done: int, total: int) -> None:
        if done:
            writer.progress.set_completed(done)
            return
        writer.progress.stop()
        writer.print_status(f"{model} is not on this machine yet: downloading {total / 1e9:.1f} GB, once")
        writer.progress.start(model, total, in_bytes=True)

    return report
