"""`idefics quantize` and `idefics merge`: write a checkpoint into a folder, which loads like any other."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from idefics.catalog import DEFAULT_MODEL
from idefics.cli.command import command, download_progress_callback
from idefics.cli.flags import flag_group, output_flag
from idefics.cli.output import OutputWriter

if TYPE_CHECKING:
    from idefics.generation.quantize import LayerError, QuantizedCheckpoint


MAX_LAYERS = 20  # errors that are printed; --json has all


@flag_group
class QuantizeFlags:
    """The checkpoint to quantize, how, and the folder to write."""

    model: Annotated[str, typer.Argument(metavar="MODEL")]
    to: Literal["int8", "int4"] = output_flag("int8 or int4.", default=MISSING, metavar="BITS")
    out: Path = output_flag("A new folder, or an empty one.", default=MISSING, metavar="DIR")
    adapter: str | None = output_flag("An adapter, merged first: a folder or hub id.", metavar="ADAPTER")
    check: bool = output_flag("Show the error of each layer, the largest first.", default=False)
    revision: str | None = output_flag("Branch, tag or commit on the hub.", metavar="NAME")
    offline: bool | None = output_flag("Never download a model.", names="--offline")


@command(
    f"idefics quantize {DEFAULT_MODEL} --to int8 --out small",
    'idefics ask photo.jpg --model ./small "What is on the table?"',
    f"idefics quantize {DEFAULT_MODEL} --to int4 --out smaller --check",
    usage="MODEL",
)
def quantize(writer: OutputWriter, flags: QuantizeFlags) -> None:
    """Write a model with int8 or int4 weights into a folder.

    --model then takes that folder. int8 has one scale per output of a linear layer. int4 has one per 32 weights in the
    decoder; the vision tower and the head stay in int8. Embeddings and the connector between vision and text are not
    quantized.
    """
    from idefics.config import QuantizationConfig
    from idefics.generation.merge import merge_adapter
    from idefics.generation.quantize import measure_layer_errors, quantize_checkpoint

    source: dict[str, Any] = {"revision": flags.revision, "offline": flags.offline}
    progress = download_progress_callback(flags.model, writer)
    writer.progress.start(f"Quantizing {flags.model}")
    with TemporaryDirectory() as temporary:
        model: str | Path = flags.model
        if flags.adapter is not None:
            merged = merge_adapter(
                model, flags.adapter, Path(temporary) / "merged", progress=progress, **source
            )
            model, source = merged.folder, {}
        checkpoint = quantize_checkpoint(
            model, QuantizationConfig(kind=flags.to), flags.out, progress=progress, **source
        )
        layer_errors = measure_layer_errors(model, flags.out, **source) if flags.check else []
    writer.progress.stop()
    if writer.as_json:
        writer.write_json_line(
            {
                "folder": str(checkpoint.folder),
                "new": checkpoint.is_new,
                "group": checkpoint.group_size,
                "layers": dict(checkpoint.num_layers_by_bits),
                "skipped": list(checkpoint.skipped_layers),
                "bytes": {"before": checkpoint.bytes_before, "after": checkpoint.bytes_after},
                "errors": [
                    {"layer": row.name, "weights": row.weight_error, "outputs": row.output_error}
                    for row in layer_errors
                ],
            }
        )
    else:
        _print_report(checkpoint, layer_errors)


def _print_report(checkpoint: QuantizedCheckpoint, layer_errors: list[LayerError]) -> None:
    """Prints the layers and sizes, and the largest layer errors."""
    counts = sorted(checkpoint.num_layers_by_bits.items())
    layers = " and ".join(f"{count} in int{bits}" for bits, count in counts)
    group = f"{checkpoint.group_size} weights" if checkpoint.group_size else "output"
    print(f"{checkpoint.folder} {'was written' if checkpoint.is_new else 'exists already and is up to date'}")
    print(f"layers   {layers}, one scale per {group}")
    print(f"skipped  {', '.join(checkpoint.skipped_layers) or 'none'}; embeddings, norms")
    share = checkpoint.bytes_after / checkpoint.bytes_before
    print(f"bytes    {checkpoint.bytes_before:,} before, {checkpoint.bytes_after:,} after ({share:.0%})")
    if layer_errors:
        print("\nweights  outputs  (relative root-mean-square error per layer, the largest first)")
    for row in layer_errors[:MAX_LAYERS]:
        outputs = "   –   " if row.output_error is None else f"{row.output_error:7.2%}"
        print(f"{row.weight_error:7.2%}  {outputs}  {row.name}")
    if len(layer_errors) > MAX_LAYERS:
        print(f"and {len(layer_errors) - MAX_LAYERS} layers with smaller errors (--json lists all)")


@flag_group
class MergeFlags:
    """The checkpoint, its adapter, and the folder to write."""

    model: Annotated[str, typer.Argument(metavar="MODEL")]
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER")]
    out: Path = output_flag("A new folder, or an empty one.", default=MISSING, metavar="DIR")
    revision: str | None = output_flag("Branch, tag or commit of the model on the hub.", metavar="NAME")
    offline: bool | None = output_flag("Never download a model.", names="--offline")


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
        offline=flags.offline,
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
