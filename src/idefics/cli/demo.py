"""`idefics demo`: every task about the bundled pictures, with a model that needs no network.

The lines below are what anybody could type; they run through the same command line.
"""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics.cli import look
from idefics.cli.flags import Debug, ModelFlags
from idefics.cli.output import Screen

if TYPE_CHECKING:
    from rich.text import Text

HELP = """
Answer every kind of question about the pictures inside the package. Needs no network.

The demo models know only those pictures and others of the same picture book; `idefics models` has the ones for
real photographs.
"""
EXAMPLES = ("idefics demo",)
SIDE = 20  # of a picture in the terminal: characters in a line, and twice as many as lines


@dataclass(frozen=True)
class Step:
    """A command line, and for a chat what is then typed into it."""

    line: str
    typed: tuple[str, ...] = ()


SCRIPT: tuple[tuple[str, tuple[Step, ...]], ...] = (
    (
        "puppy.png",
        (
            Step("idefics caption puppy.png"),
            Step('idefics complete puppy.png "This is an image of"'),
        ),
    ),
    ("statue.png", (Step("idefics caption statue.png --shots shots.jsonl"),)),
    ("vegetables.png", (Step('idefics ask vegetables.png "Where is the tomato?"'),)),
    ("door.png", (Step('idefics classify door.png --labels "animal,building,vehicle,flower"'),)),
    ("picnic.png", (Step("idefics write picnic.png"),)),
    (
        "tower.png",
        (
            Step(
                "idefics chat tower.png",
                ("What is in this image?", "/image statue.png", "And in this one?", "Where is it?"),
            ),
        ),
    ),
    (
        "shapes.png",
        (
            Step('idefics generate shapes.png "This is an image of"'),
            Step('idefics ask *.png "How many things are there?"'),
        ),
    ),
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "demo", _demo, help=HELP, examples=EXAMPLES)


def _demo(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Which of the demo models.", rich_help_panel="Model")
    ] = "demo",
    debug: Debug = False,
) -> int:
    from idefics.demo import pictures

    folder = pictures()[0].parent
    with Screen(context.command_path) as screen:
        vlm = context.obj(ModelFlags(model=model), screen)
        print(f"cd {shlex.quote(str(folder))}\nexport IDEFICS_MODEL={model}\n")
        began = time.perf_counter()
        with chdir(folder):
            for name, steps in SCRIPT:
                code = _show(name, steps, lambda flags, screen: vlm, screen)
                if code:
                    return code
        print(f"{time.perf_counter() - began:.1f} seconds. `idefics models` has the models for real photographs.")
    return 0


def _show(name: str, steps: tuple[Step, ...], loader: Loader, screen: Screen) -> int:
    """One picture, what is asked about it and what is answered."""
    said: list[tuple[str, str]] = []
    for step in steps:
        code, answers = _run(step, loader)
        if code:
            return code
        said.append((step.line, answers))
    if screen.person:
        from rich.table import Table
        from rich.text import Text

        lines = [part for line, answers in said for part in (Text(f"$ {line}", "cyan"), answers)]
        table = Table.grid(padding=(0, 2))
        table.add_row(_drawn(Path(name)), Text("\n").join(lines))
