"""`idefics info`: what this machine has, and what a model needs; `idefics models`: checkpoints with a short name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from idefics import __version__
from idefics.catalog import (
    CATALOG,
    DEFAULT_MODEL,
    CatalogEntry,
    Precision,
    checkpoint_peak_bytes,
    checkpoint_weight_bytes,
    find_entry,
)
from idefics.cli.command import command
from idefics.cli.flags import flag_group
from idefics.cli.output import OutputWriter
from idefics.errors import ModelNotFound, format_bytes, format_count

LABEL_WIDTH = 12  # characters of the first column


@flag_group
class ModelArgument:
    """The positional argument: the model whose memory is estimated; None: only this machine is described."""

    model: Annotated[str | None, typer.Argument(metavar="MODEL")] = None


@command("idefics info", f"idefics info {DEFAULT_MODEL}", "idefics info --json", usage="[MODEL]")
def info(writer: OutputWriter, argument: ModelArgument) -> None:
    """Show devices, kernels, memory, caches and versions.

    With MODEL, show also how much memory that model needs; it is not loaded.
    """
    from idefics.generation.environment import describe_environment, estimate_model_memory

    writer.progress.start("Collecting information")
    report: dict[str, Any] = {"idefics": __version__, **describe_environment()}
    if (model := argument.model) is not None:
        try:
            report["model"] = estimate_model_memory(model)
        except ModelNotFound:
            if (row := find_entry(model)) is None:
                raise
            report["model"] = {
                "model": model,
                "folder": None,
                "weights": checkpoint_weight_bytes(row, "bfloat16"),
                "in_all": checkpoint_peak_bytes(row, "bfloat16"),
            }
    writer.progress.stop()
    if writer.as_json:
        writer.write_json_line(report)
    else:
        for name, text in _report_lines(report):
            print(f"{name:<{LABEL_WIDTH}} {text}")


def _report_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields a label and a text for each line about this machine, then about the model if there is one."""
    yield "idefics", f"{report['idefics']}, Python {report['python']}"
    cores, threads = format_count(report["cores"], "core"), format_count(report["threads"], "thread")
    yield "processor", f"{report['processor']}, {cores}, {threads}"
    yield "device", f"{report['device']} (available: {', '.join(report['devices'])})"
    for name, instructions in report["kernels"].items():
        yield "kernel", f"{name}: {instructions or 'missing'}"
    if report["kernels_missing"]:
        yield "kernel", report["kernels_missing"]
    # Which kernels kernels="auto" chooses for the matrix products of a model that is not small.
    products = report["products"]
    float32_library = "oneDNN" if products["onednn"] else "torch"
    int8_arithmetic = "integers" if products["integers"] else "float32"
    bfloat16_arithmetic = "bfloat16" if products["bfloat16"] else "float32"
    yield (
        "matmul",
        f"float32 by {float32_library}, bfloat16 weights in {bfloat16_arithmetic}, int8 weights in {int8_arithmetic}",
    )
    for bound in report["memory"]:
        yield (
            "memory",
            f"{format_bytes(bound['free'])} free of {format_bytes(bound['total'])}: {bound['source']}",
        )
    for cache in report["caches"]:
        yield "cache", f"{cache['name']}: {format_bytes(cache['bytes'])} in {cache['path']}"
    yield (
        "versions",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
    )
    for extra, installed in report["extras"].items():
        missing = f"not installed (pip install 'idefics[{extra}]')"
        yield "extra", f"{extra}: {'installed' if installed else missing}"
    model = report.get("model")
    if model is None:
        return
    yield "model", f"{model['model']}: {model['folder'] or 'not on this machine'}"
    yield "weights", format_bytes(model["weights"])
    if model["folder"]:
        per_thousand = format_bytes(model["token_bytes"] * 1000)
        tokens = f"{model['cached_tokens']:,} tokens, {per_thousand} per 1,000"
        yield "kv cache", f"{format_bytes(model['kv_cache'])} ({tokens})"
        yield "context", f"{model['max_positions']:,} tokens at most"
        yield "pictures", f"{format_bytes(model['pictures'])} for the cache of encoded pictures"
        yield "process", f"{format_bytes(model['process'])} for Python and torch"
    yield "total", f"about {format_bytes(model['in_all'])} on a CPU"


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
    from idefics import weights

    if writer.as_json:
        for row in CATALOG:
            writer.write_json_line(_json_row(row))
        return
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
