"""`idefics demo`: every task about the bundled pictures, with a model that needs no network.

The script is what anybody could type, and runs through the same command line.
"""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics.cli import look
from idefics.cli.flags import Debug, ModelFlags
from idefics.cli.loading import Loader
from idefics.cli.output import Screen

if TYPE_CHECKING:
    from rich.text import Text

    from idefics import Idefics

HELP = """
Answer every kind of question about the pictures inside the package. Needs no network.

The demo models know those pictures and others of the same picture book, nothing else; `idefics models` lists the ones
for real photographs.
"""
EXAMPLES = ("idefics demo",)
SIDE = 20  # of a drawn picture: characters in a line, and pixels in a column


@dataclass(frozen=True)
class Step:
    """A command line, and for a chat what is then typed."""

    line: str
    typed: tuple[str, ...] = ()


# The raw prompt of the published guide, with its fun fact: texts and pictures exactly as the model reads them.
ASKED = "Describe this image.\nAssistant:"
SHOWN = f"{ASKED} An image of a tower. Fun fact: towers sway a little in the wind.\n"

SCRIPT: dict[str, tuple[Step, ...]] = {  # by the picture that is drawn beside it
    "puppy.png": (
        Step("idefics caption puppy.png"),
        Step('idefics complete puppy.png "This is an image of"'),
    ),
    "statue.png": (
        Step("cat shots.jsonl"),
        Step("idefics caption statue.png --shots shots.jsonl"),
    ),
    "picnic.png": (
        Step('idefics ask picnic.png "What is on the left?"'),
        Step('idefics ask *.png "How many things are there?"'),
    ),
    "vegetables.png": (
        Step('idefics classify vegetables.png --labels "animals,vegetables,city landscape,cars,office"'),
    ),
    "door.png": (Step("idefics write door.png"),),
    "tower.png": (Step(f'idefics generate "User:" tower.png "{SHOWN}" "User:" statue.png "{ASKED}"'),),
    "shapes.png": (
        Step(
            "idefics chat shapes.png",
            ("What is in this image?", "/image statue.png", "And in this one?", "Where is it?"),
        ),
    ),
}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "demo", _demo, help=HELP, examples=EXAMPLES)


Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", rich_help_panel="Model", help="Which model answers.")
]


def _demo(context: typer.Context, model: Model = "demo", debug: Debug = False) -> int:
    from idefics.demo import pictures

    folder = pictures()[0].parent
    with Screen(context.command_path) as screen:
        vlm: Idefics = context.obj(ModelFlags(model=model), screen)

        def loader(flags: ModelFlags, screen: Screen) -> Idefics:
            return vlm

        began = time.perf_counter()
        print(f"$ cd {shlex.quote(str(folder))}\n$ export IDEFICS_MODEL={shlex.quote(model)}\n", flush=True)
        with chdir(folder):
            for picture, steps in SCRIPT.items():
                lines = [line for step in steps for line in _transcript(step, loader, person=screen.person)]
                _show(picture, lines, screen)
        seconds = time.perf_counter() - began
        print(
            f"All of that took {seconds:.1f} seconds. `idefics models` lists the models for real photographs."
        )
    return 0


def _transcript(step: Step, loader: Loader, *, person: bool) -> list[str]:
    """What stands in a terminal once a step is done: what was typed and what came back."""
    match shlex.split(step.line):
        case ["cat", name]:
            came = Path(name).read_text(encoding="utf-8").splitlines()
        case ["idefics", *arguments]:
            came = _answers(arguments, step.typed, loader, person=person)
    if not step.typed:
        return [f"$ {step.line}", *came]
    answers = iter(came)
    talk = [[f"> {line}"] if line.startswith("/") else [f"> {line}", next(answers)] for line in step.typed]
    return [f"$ {step.line}", *chain.from_iterable(talk)]


def _answers(arguments: Sequence[str], typed: Sequence[str], loader: Loader, *, person: bool) -> list[str]:
    from idefics.cli.main import run  # which imports this file

    said, keyboard = _Paper(person), sys.stdin
    sys.stdin = io.StringIO("\n".join(typed))
    try:
        with redirect_stdout(said):
            code = run(arguments, loader)
    finally:
        sys.stdin = keyboard
    if code:
        raise typer.Exit(code)
    return said.getvalue().splitlines()


class _Paper(io.StringIO):
    """Keeps what is written to it, colours and all where a person will read it."""

    def __init__(self, person: bool) -> None:
        super().__init__()
        self.person = person

    def isatty(self) -> bool:
        return self.person


def _show(picture: str, lines: Sequence[str], screen: Screen) -> None:
    """A person sees the picture beside the words."""
    if not screen.person or screen.console.no_color:
        print("\n".join([*lines, ""]), flush=True)
        return
    from rich.table import Table
    from rich.text import Text

    words = [Text.from_ansi(line, style="cyan" if line.startswith(("$ ", "> ")) else "") for line in lines]
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_row(_drawn(Path(picture)), Text("\n").join(words))
    screen.console.print(table)


def _drawn(path: Path) -> Text:
    """A picture in coloured half blocks: two pixels a character, one above the other."""
    from PIL import Image
    from rich.text import Text

    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((SIDE, SIDE)).tobytes().hex()
    colors = [f"#{pixels[start : start + 6]}" for start in range(0, len(pixels), 6)]
    drawn = Text()
    for row in range(0, SIDE * SIDE, 2 * SIDE):
        for upper, lower in zip(colors[row : row + SIDE], colors[row + SIDE : row + 2 * SIDE], strict=True):
            drawn.append("▀", f"{upper} on {lower}")
        drawn.append("\n")
    return drawn
