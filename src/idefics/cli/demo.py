"""`idefics demo`: runs every task on the bundled pictures, with the bundled model.

Each step is a command line that a person could type, and is run as one.
"""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from idefics.cli.command import LoadModel, command
from idefics.cli.flags import ModelFlags, flag_group, model_flag
from idefics.cli.output import OutputWriter

if TYPE_CHECKING:
    from rich.text import Text

    from idefics import Idefics

DRAWING_SIZE = 20  # characters per line of a drawn picture, and pixels per column


# The few-shot prompt of the published guide (docs/guides/key-tasks.md), as the model reads it.
FEW_SHOT_QUESTION = "Describe this image.\nAssistant:"
FEW_SHOT_EXAMPLE = f"{FEW_SHOT_QUESTION} An image of a tower. Fun fact: towers sway a little in the wind.\n"

COMMAND_LINES_BY_PICTURE = {  # by the picture that is drawn next to them
    "puppy.png": ("idefics caption puppy.png", 'idefics complete puppy.png "This is an image of"'),
    "statue.png": ("cat shots.jsonl", "idefics caption statue.png --shots shots.jsonl"),
    "picnic.png": (
        'idefics ask picnic.png "What is on the left?"',
        'idefics ask *.png "How many things are there?"',
    ),
    "vegetables.png": (
        'idefics classify vegetables.png --labels "animals,vegetables,city landscape,cars,office"',
    ),
    "door.png": ("idefics write door.png",),
    "tower.png": (
        f'idefics generate "User:" tower.png "{FEW_SHOT_EXAMPLE}" "User:" statue.png "{FEW_SHOT_QUESTION}"',
    ),
    "shapes.png": ("idefics chat shapes.png",),
}
# What is typed into the chat.
CHAT_LINES = ("What is in this image?", "/image statue.png", "And in this one?", "Where is it?")


@flag_group
class DemoFlags:
    """The flags of `idefics demo`: which model runs the tasks."""

    model: str = model_flag("Which model answers.  [default: demo]", default="demo", metavar="MODEL")


@command("idefics demo", has_json=False)
def demo(writer: OutputWriter, load_model: LoadModel, flags: DemoFlags) -> None:
    """Run every task on the bundled pictures; needs no network.

    The demo models know only the bundled pictures and others like them; `idefics models` lists the models for real
    photographs.
    """
    from idefics.demo import pictures

    folder = pictures()[0].parent
    vlm = load_model(ModelFlags(model=flags.model))

    start_time = time.perf_counter()
    print(f"$ cd {shlex.quote(str(folder))}\n$ export IDEFICS_MODEL={shlex.quote(flags.model)}\n", flush=True)
    with chdir(folder):
        for picture, command_lines in COMMAND_LINES_BY_PICTURE.items():
            lines = [
                line
                for command_line in command_lines
                for line in _run_to_transcript(command_line, vlm, is_interactive=writer.is_interactive)
            ]
            _print_step(picture, lines, writer)
    seconds = time.perf_counter() - start_time
    print(f"Everything took {seconds:.1f} seconds. `idefics models` lists the models for real photographs.")


def _run_to_transcript(command_line: str, vlm: Idefics, *, is_interactive: bool) -> list[str]:
    """Runs a command line and returns the lines that a terminal would show: what is typed, and the output.

    A chat reads `CHAT_LINES`.
    """
    from idefics.cli.main import run  # imports this module

    program, *arguments = shlex.split(command_line)
    if program == "cat":
        output = Path(arguments[0]).read_text(encoding="utf-8")
    else:
        captured, original_stdin = _CapturedTerminal(is_interactive), sys.stdin
        sys.stdin = io.StringIO("\n".join(CHAT_LINES))
        try:
            with redirect_stdout(captured):
                exit_code = run(arguments, lambda *_: vlm)
        finally:
            sys.stdin = original_stdin
        if exit_code:
            raise typer.Exit(exit_code)
        output = captured.getvalue()
    transcript, output_lines = [f"$ {command_line}"], iter(output.splitlines())
    for line in CHAT_LINES if arguments[0] == "chat" else ():
        transcript.append(f"> {line}")
        if not line.startswith("/"):
            transcript.append(next(output_lines))
    return [*transcript, *output_lines]


class _CapturedTerminal(io.StringIO):
    """An output stream that keeps what is written to it.

    It claims to be a terminal if the output is printed on one later, so that it has colours.
    """

    def __init__(self, is_interactive: bool) -> None:
        super().__init__()
        self.is_interactive = is_interactive

    def isatty(self) -> bool:
        """Whether commands format their output for a terminal."""
        return self.is_interactive


def _print_step(picture: str, lines: Sequence[str], writer: OutputWriter) -> None:
    """Prints a step; on a terminal with colour, the picture is drawn to its left."""
    if not writer.is_interactive or writer.console.no_color:
        print("\n".join([*lines, ""]), flush=True)
        return
    from rich.table import Table
    from rich.text import Text

    words = [Text.from_ansi(line, style="cyan" if line.startswith(("$ ", "> ")) else "") for line in lines]
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_row(_draw_picture(Path(picture)), Text("\n").join(words))
    writer.console.print(table)


def _draw_picture(path: Path) -> Text:
    """Draws a picture in coloured half blocks; each character shows two pixels, one above the other."""
    from PIL import Image
    from rich.text import Text

    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((DRAWING_SIZE, DRAWING_SIZE)).tobytes().hex()
    colors = [f"#{pixels[start : start + 6]}" for start in range(0, len(pixels), 6)]
    drawing = Text()
    for row in range(0, DRAWING_SIZE * DRAWING_SIZE, 2 * DRAWING_SIZE):
        for upper, lower in zip(
            colors[row : row + DRAWING_SIZE], colors[row + DRAWING_SIZE : row + 2 * DRAWING_SIZE], strict=True
        ):
            drawing.append("▀", f"{upper} on {lower}")
        drawing.append("\n")
    return drawing
