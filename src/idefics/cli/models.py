"""`idefics models`: the checkpoints with a short name, what they need, and which are here already."""

from __future__ import annotations

from typing import Any

import typer

from idefics.catalog import BITS, CATALOG, DEFAULT, CheckpointRow, memory
from idefics.cli import look
from idefics.cli.flags import OutputFlags
from idefics.cli.output import Screen

HELP = """
List the models: short names, sizes, memory at each precision, licences, which are on this machine.

Any other checkpoint of these families is named by its folder or by its id on the Hugging Face hub.
"""
EXAMPLES = ("idefics models", "idefics models --json")

HEADING = f"{'--model':<20} {'numbers':>7} " + " ".join(f"{precision:>8}" for precision in BITS)
FOOT = """
The demo models know only the picture book inside this package; for real photographs use {real}.
Memory is what the weights alone take. A CPU computes in float32, a GPU in bfloat16; this version does not quantise to
int8 or int4 yet. {default} is used where no --model and no IDEFICS_MODEL is given."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "models", _models, help=HELP, examples=EXAMPLES)


def _models(context: typer.Context, *, output: OutputFlags) -> int:
    with Screen(context.command_path, as_json=output.json) as screen:
        if screen.as_json:
            for row in CATALOG:
                screen.row(_object(row))
            return screen.code
        screen.console.print(HEADING, style="bold")
        for row in CATALOG:
            numbers = " ".join(f"{_short(memory(row, precision), 'B'):>8}" for precision in BITS)
            style = "default" if row.runs else "dim"
            screen.console.print(
                f"{', '.join(row.names):<20} {_short(row.parameters):>7} {numbers}  {_state(row)}", style=style
            )
            about = ", ".join(filter(None, [row.hub, row.licence])) + "."
            screen.console.print(f"    {about} {row.note}".rstrip(), style="dim")
        real = ", ".join(row.name for row in CATALOG if row.hub and row.runs)
        screen.console.print(FOOT.format(real=real, default=DEFAULT))
        return screen.code


def _state(row: CheckpointRow) -> str:
    if not row.runs:
        return "not in this version"
    if not row.hub:
        return "in the package"
    return "in the cache" if _is_cached(row) else "to download"


def _is_cached(row: CheckpointRow) -> bool:
    from idefics import weights

    return weights.cached(row.hub) is not None


def _short(number: int, unit: str = "") -> str:
    """Three digits or so: 507 M, 8.46 G, 16.9 GB."""
    for prefix, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number} {unit}"


def _object(row: CheckpointRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "names": row.names,
        "hub": row.hub or None,
        "family": row.family,
        "kind": row.kind,
        "parameters": row.parameters,
        "memory": {precision: memory(row, precision) for precision in BITS},
        "licence": row.licence,
        "note": row.note,
        "runs": row.runs,
        "here": not row.hub or _is_cached(row),
        "default": row.name == DEFAULT,
    }
