"""`idefics models`: the checkpoints with a short name, what they need, and which are here already."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from idefics.catalog import CATALOG, DEFAULT, CheckpointRow, Precision, memory
from idefics.cli import look
from idefics.cli.flags import OutputFlags
from idefics.cli.output import Screen

HELP = """
List the models: short names, sizes, memory at each precision, licences, which are on this machine.

Any other checkpoint of these families is named by its folder or by its id on the Hugging Face hub.
"""
EXAMPLES = ("idefics models", "idefics models --json")

# With the longest hub id a line has 100 characters.
WIDTHS: dict[Precision, int] = {"float32": 8, "bfloat16": 6, "int8": 6, "int4": 6}
HEADING = "  name              parameters float32  bf16  int8  int4  on the hub"
FOOT = """
From float32 to int4: GB of memory that the weights take. int8 shrinks all matrices but the bridge
between vision and text and the tables of tokens; int4 those of the decoder further.
* is on this machine already. Others are downloaded when they are first asked for, to
  {cache}
The demo models know only the picture book inside this package; for real photographs use one of the
others, such as {default}, which is taken where neither --model nor IDEFICS_MODEL names one."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "models", _models, help=HELP, examples=EXAMPLES)


def _models(context: typer.Context, *, output: OutputFlags) -> int:
    with Screen(context.command_path, as_json=output.json) as screen:
        if screen.as_json:
            for row in CATALOG:
                screen.row(_object(row))
        else:
            _table(screen)
        return screen.code


def _table(screen: Screen) -> None:
    from idefics import weights

    screen.console.print(HEADING, style="bold")
    for heading, rows in groupby(CATALOG, _heading):
        screen.console.print(heading, style="cyan")
        for row in rows:
            line = _line(row)
            screen.console.print(line, style="green" if line.startswith("*") else "default")
            if row.note and row.hub:
                screen.console.print(f"      {row.note}", style="dim")
    screen.console.print(FOOT.format(cache=weights.cache_folder(), default=DEFAULT))


def _heading(row: CheckpointRow) -> str:
    """What the rows of a family have in common."""
    if row.folder:
        return f"Demo: {row.licence}, inside the package"
    return f"{row.family}: {row.licence}{', video too' if row.video else ''}"


def _line(row: CheckpointRow) -> str:
    mark = " " if _folder(row) is None else "*"
    count = (
        f"{_digits(row.parameters / 1e9)} B"
        if row.parameters >= 10**9
        else f"{_digits(row.parameters / 1e6)} M"
    )
    needs = "".join(f"{_digits(memory(row, name) / 1e9):>{width}}" for name, width in WIDTHS.items())
    return f"{mark} {row.name:<20}{count:>8}{needs}  {row.hub}".rstrip()


def _folder(row: CheckpointRow) -> Path | None:
    """Where a row's files are on this machine."""
    from idefics import weights

    return weights.cached(row.hub) if row.hub else weights.find(row.name)


def _digits(number: float) -> str:
    """Three digits, in five characters at most."""
    return f"{number:.3f}" if number < 1 else f"{number:#.3g}".rstrip(".")


def _object(row: CheckpointRow) -> dict[str, Any]:
    folder = _folder(row)
    return {
        "name": row.name,
        "names": row.names,
        "hub": row.hub or None,
        "family": row.family,
        "kind": row.kind,
        "video": row.video,
        "parameters": row.parameters,
        "memory": {precision: memory(row, precision) for precision in WIDTHS},
        "licence": row.licence,
        "note": row.note,
        "folder": None if folder is None else str(folder),
        "default": row.name == DEFAULT,
    }
