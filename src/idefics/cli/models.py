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

HEADING = f"{'name':<18} {'parameters':>10} " + " ".join(f"{precision:>8}" for precision in BITS)
FOOT = """
The demo models know only the picture book inside this package; for real photographs use one of the others,
such as {real}. Without --model and IDEFICS_MODEL, it is {default}.
Memory is what the weights take: float32 on a CPU, bfloat16 on a GPU; this version does not quantise yet."""


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
            size = _short(row.parameters, "M", "B")
            needs = " ".join(f"{_short(memory(row, precision), 'MB', 'GB'):>8}" for precision in BITS)
            style = "default" if row.runs else "dim"
            screen.console.print(f"{row.name:<18} {size:>10} {needs}  {_state(row)}", style=style)
            screen.console.print(f"    {_about(row)}", style="dim")
        real = ", ".join(
            row.name for row in CATALOG if row.hub and row.runs and row.kind != "base" and row.note
        )
        screen.console.print(FOOT.format(real=real, default=DEFAULT))
        return screen.code


def _about(row: CheckpointRow) -> str:
    others = f"also called {', '.join(row.names[1:])}" if row.names[1:] else ""
    return f"{', '.join(filter(None, [row.hub, row.licence, others]))}. {row.note}".rstrip()


def _state(row: CheckpointRow) -> str:
    if not row.runs:
        return "not in this version"
    if not row.hub:
        return "in the package"
    return "in the cache" if _is_cached(row) else "to download"


def _is_cached(row: CheckpointRow) -> bool:
    from idefics import weights

    return weights.cached(row.hub) is not None


def _short(number: int, million: str, billion: str) -> str:
    """Three digits and a unit."""
    return f"{number / 1e9:.3g} {billion}" if number >= 10**9 else f"{number / 1e6:.3g} {million}"


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
