"""`idefics merge`: writes a model with an adapter merged into it as an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Annotated

import typer

from idefics.catalog import DEFAULT_MODEL
from idefics.cli.command import command, download_progress_callback
from idefics.cli.flags import flag_group, output_flag
from idefics.cli.output import OutputWriter


@flag_group
class MergeFlags:
    """The checkpoint, its adapter, and the folder to write."""

    model: Annotated[str, typer.Argument(metavar="MODEL")]
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER")]
    out: Path = output_flag("A new folder, or an empty one.", default=MISSING, metavar="DIR")
    revision: str | None = output_flag("Branch, tag or commit of the model on the hub.", metavar="NAME")
    offline: bool = output_flag("Never download a model.", default=False)


@command(
    f"idefics merge {DEFAULT_MODEL} ./my-adapter --out my-model",
    'idefics ask photo.jpg --model ./my-model "What is on the table?"',
    usage="MODEL ADAPTER",
)
def merge(writer: OutputWriter, flags: MergeFlags) -> None:
    """Merge an adapter into a model, and write the result into a folder.

    The folder is an ordinary checkpoint, which --model, transformers and other programs take: its files, names and
    number formats are those of MODEL. ADAPTER is a folder or hub id with adapter_config.json and
    adapter_model.safetensors, as peft saves them. To use an adapter without writing anything: --adapter.
    """
    from idefics.generation.merge import merge_adapter

    writer.progress.start(f"Merging {flags.adapter}")
    merged = merge_adapter(
        flags.model,
        flags.adapter,
        flags.out,
        revision=flags.revision,
        offline=flags.offline or None,  # None leaves it to the environment
        progress=download_progress_callback(flags.model, writer),
    )
    writer.progress.stop()
    if writer.as_json:
        writer.write_json_line(
            {
                "folder": str(merged.folder),
                "changed": merged.num_changed,
                "tensors": merged.num_tensors,
                "untied": merged.untied,
            }
        )
        return
    untied = "; head and embedding are two tensors now" if merged.untied else ""
    print(
        f"{merged.folder} was written: {merged.num_changed} of {merged.num_tensors} tensors changed{untied}"
    )
