"""`idefics models`: lists the checkpoints that have a short name, with sizes, and marks those on this machine."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from idefics.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, Precision, checkpoint_weight_bytes
from idefics.cli.command import command
from idefics.cli.output import OutputWriter

# A line with the longest hub id has 100 characters.
COLUMN_WIDTHS: dict[Precision, int] = {"float32": 8, "bfloat16": 6, "int8": 6, "int4": 6}
HEADING = "  name              parameters float32  bf16  int8  int4  on the hub"
FOOTER = """
float32 to int4: memory of the weights in GB. int8 quantizes all linear layers except the connector
between vision and text; int4 does the same, with 4 bits for the layers of the decoder.
* is on this machine already. The others are downloaded on first use, to
  {cache}
The demo models know only the bundled pictures and others like them. For real photographs use one of
the others, such as {default}, the default where neither --model nor IDEFICS_MODEL is set."""


@command("idefics models", "idefics models --json")
def models(writer: OutputWriter) -> None:
    """List the models: names, sizes, memory and licences.

    Any other checkpoint of these families can be given by its folder or by its id on the Hugging Face hub.
    """
    if writer.as_json:
        for row in CATALOG:
            writer.write_json_line(_json_row(row))
    else:
        _print_table(writer)


def _print_table(writer: OutputWriter) -> None:
    """Prints the models by family, with a heading and explanations."""
    from idefics import weights

    writer.console.print(HEADING, style="bold")
    for heading, rows in groupby(CATALOG, _family_heading):
        writer.console.print(heading, style="cyan")
        for row in rows:
            line = _table_line(row)
            writer.console.print(line, style="green" if line.startswith("*") else "default")
            if row.note and row.hub_id:
                writer.console.print(f"      {row.note}", style="dim")
    writer.console.print(FOOTER.format(cache=weights.cache_folder(), default=DEFAULT_MODEL))


def _family_heading(row: CatalogEntry) -> str:
    """The line above the models of a family: its name and licence."""
    if row.package_folder:
        return f"Demo: {row.licence}, inside the package"
    return f"{row.family}: {row.licence}{', video too' if row.is_video_trained else ''}"


def _table_line(row: CatalogEntry) -> str:
    """The line of one model: name, parameters, memory by precision, hub id; begins with * if it is on this machine."""
    local_mark = " " if _local_folder(row) is None else "*"
    num_parameters_text = (
        f"{_format_three_digits(row.num_parameters / 1e9)} B"
        if row.num_parameters >= 10**9
        else f"{_format_three_digits(row.num_parameters / 1e6)} M"
    )
    memory_columns = "".join(
        f"{_format_three_digits(checkpoint_weight_bytes(row, name) / 1e9):>{width}}"
        for name, width in COLUMN_WIDTHS.items()
    )
    return f"{local_mark} {row.name:<20}{num_parameters_text:>8}{memory_columns}  {row.hub_id}".rstrip()


def _local_folder(row: CatalogEntry) -> Path | None:
    """The folder of a catalog's model on this machine; None if it is not downloaded."""
    from idefics import weights

    return weights.complete_cached_folder(row.hub_id) if row.hub_id else weights.find_checkpoint(row.name)


def _format_three_digits(number: float) -> str:
    """A number below 999.5 in three digits: "1.23", "12.3", "123"; below 1 with three decimals: "0.012"."""
    return f"{number:.3f}" if number < 1 else f"{number:#.3g}".rstrip(".")


def _json_row(row: CatalogEntry) -> dict[str, Any]:
    """The JSON object of one model."""
    folder = _local_folder(row)
    return {
        "name": row.name,
        "names": row.short_names,
        "hub": row.hub_id or None,
        "family": row.family,
        "kind": row.kind,
        "video": row.is_video_trained,
        "parameters": row.num_parameters,
        "memory": {precision: checkpoint_weight_bytes(row, precision) for precision in COLUMN_WIDTHS},
        "licence": row.licence,
        "note": row.note,
        "folder": None if folder is None else str(folder),
        "default": row.name == DEFAULT_MODEL,
    }
