"""The commands that answer about pictures: caption, complete, ask, classify and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from idefics.cli import look
from idefics.cli.flags import Arguments, LookFlags, ModelFlags, OutputFlags, Prompt, Recursive, Shots
from idefics.cli.output import Screen
from idefics.cli.pictures import reads_like_words, split_words
from idefics.cli.rounds import Round
from idefics.cli.sampling import SamplingFlags
from idefics.cli.text_files import read_text_file
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.messages import Answer
from idefics.tasks import TASKS
from idefics.tasks.classify import checked
from idefics.tasks.record import Task
from idefics.tasks.write import STORY

if TYPE_CHECKING:
    from idefics.pipeline import Stream

DEFAULT_WORDS = {"write": STORY}  # the words of a task that can do without the caller's

PICTURES = """
A PICTURE is a file, a folder, a pattern such as "photos/*.jpg", an http(s) address, or - for standard input.
Models trained on video also accept videos: clip.mp4.
Each picture of a folder is taken once, hidden files never; --recursive searches its subfolders too, and so does a
pattern with **. What is left out is counted on standard error. HEIC needs pip install 'idefics[heif]'.
One picture prints its answer alone; several, a folder or a pattern print one line each, "name: answer".
--json always gives the name, also where xargs passes a single picture.

Files that cannot be read are reported on standard error, the others are answered; the exit code is then 2.
"""

_label = partial(typer.Option, rich_help_panel="Labels")
Labels = Annotated[
    str | None, _label("--labels", metavar="LABEL,LABEL", help="Labels to choose from, separated by commas.")
]
Label = Annotated[
    list[str] | None,
    _label("--label", metavar="LABEL", help="One label, which may contain a comma; repeatable."),
]
LabelsFile = Annotated[
    Path | None,
    _label("--labels-file", metavar="FILE", help="File of labels, one per line; - is standard input."),
]
LengthNormalized = Annotated[
    bool, _label("--length-normalized", help="Divide each label's score by its number of tokens.")
]
Calibrated = Annotated[
    bool, _label("--calibrated", help="Subtract each label's score for a plain gray picture.")
]


@dataclass(frozen=True)
class Page:
    """What the help of a command says beside the task's own line."""

    usage: str
    remark: str
    examples: tuple[str, ...]


PAGES = {
    "caption": Page(
        "PICTURE...",
        "It takes no words; `idefics ask` and `idefics complete` do.",
        (
            "idefics caption photo.jpg",
            "idefics caption photos/ > captions.txt",
            "idefics caption photo.jpg --shots shots.jsonl",
            "cat photo.jpg | idefics caption - --json",
        ),
    ),
    "complete": Page(
        "PICTURE... TEXT",
        "The text comes last, in quotes, or by --prompt; the answer begins with it.",
        (
            'idefics complete photo.jpg "This is an image of"',
            'idefics complete *.jpg "The ground is" --max-new-tokens 12',
        ),
    ),
    "ask": Page(
        "PICTURE... QUESTION",
        "The question comes last, in quotes, or by --prompt.",
        (
            'idefics ask photo.jpg "What is on the table?"',
            'idefics ask *.jpg "How many people are there?"',
            'idefics ask photo.jpg --prompt "Is it day or night?" --choices day,night --json',
        ),
    ),
    "classify": Page(
        "PICTURE... --labels LABEL,LABEL",
        "Down a pipe only the best label is printed; --json gives all of them with their probabilities.",
        (
            'idefics classify photo.jpg --labels "cat,dog,bird"',
            'idefics classify photo.jpg --label "red, round" --label "blue, square"',
            'idefics classify photos/ --labels "indoors,outdoors" --calibrated --json',
            "idefics classify photo.jpg --labels-file labels.txt",
        ),
    ),
    "write": Page(
        "PICTURE... [INSTRUCTION]",
        "The instruction comes last, in quotes, or by --prompt.",
        (
            "idefics write photo.jpg",
            'idefics write photo.jpg "Write a short advertisement for this." --max-new-tokens 120',
            "idefics write photo.jpg --temperature 0.8 --top-p 0.95 --seed 7",
        ),
    ),
}


def register(app: typer.Typer) -> None:
    """Adds a command for each task."""
    others: dict[str, look.Run] = {"caption": _caption, "classify": _classify}
    for task in TASKS.values():
        page, run = PAGES[task.name], others.get(task.name) or _with_words(task)
        help = f"{task.help}\n\n{page.remark}\n{PICTURES}"
        look.add(app, task.name, run, help=help, usage=page.usage, examples=page.examples)


def _caption(
    context: typer.Context,
    arguments: Arguments,
    shots: Shots = None,
    recursive: Recursive = False,
    *,
    model: ModelFlags,
    sampling: SamplingFlags,
    output: OutputFlags,
) -> int:
    _refuse_words(arguments, "caption takes no words (`idefics ask` takes a question)")
    return _say(TASKS["caption"], context, arguments, "", shots, recursive, model, sampling, output)


def _with_words(task: Task) -> look.Run:
    """The command of a task that takes the caller's words."""

    def run(
        context: typer.Context,
        arguments: Arguments,
        prompt: Prompt = None,
        shots: Shots = None,
        recursive: Recursive = False,
        *,
        model: ModelFlags,
        sampling: SamplingFlags,
        output: OutputFlags,
    ) -> int:
        names, words = split_words(arguments, prompt, task.words)
        words = DEFAULT_WORDS.get(task.name) if words is None else words
        if words is None:
            raise BadPrompt(f"no {task.words} given: put it last, in quotes, or use --prompt")
        if not words.strip():
            raise BadPrompt(f"the {task.words} is empty: put it last, in quotes, or use --prompt")
        return _say(task, context, names, words.strip(), shots, recursive, model, sampling, output)

    return run


def _say(
    task: Task,
    context: typer.Context,
    arguments: Sequence[str],
    words: str,
    shots: Path | None,
    recursive: bool,
    model: ModelFlags,
    sampling: SamplingFlags,
    output: OutputFlags,
) -> int:
    options = sampling.options(as_json=output.json)
    with Screen(context.command_path, as_json=output.json) as screen:
        pictures = Round(arguments, shots, screen, model, context.obj, recursive=recursive)
        if screen.person and not screen.names:
            for named in pictures.opened(pictures.found):
                stream = pictures.vlm.run(task, named.picture, words, stream=True, **options)
                screen.stream(cast("Stream", stream))
        else:
            said = pictures.replies(
                lambda vlm, several: cast(
                    "list[Answer | IdeficsError]", vlm.run(task, several, words, on_error="return", **options)
                )
            )
            for answer, name in said:
                screen.answer(answer, name, pictures.vlm)
        return screen.code


def _classify(
    context: typer.Context,
    arguments: Arguments,
    labels: Labels = None,
    label: Label = None,
    labels_file: LabelsFile = None,
    length_normalized: LengthNormalized = False,
    calibrated: Calibrated = False,
    shots: Shots = None,
    recursive: Recursive = False,
    *,
    model: ModelFlags,
    seen: LookFlags,
    output: OutputFlags,
) -> int:
    closely = seen.looking()
    _refuse_words(arguments, 'labels are given as --labels "cat,dog"')
    wanted = [*(labels.split(",") if labels else ()), *(label or ()), *_read_labels(labels_file)]
    if not wanted:
        raise BadSetting(
            'no labels given: --labels "cat,dog", --label cat --label dog, or --labels-file FILE'
        )
    wanted = checked(wanted)
    with Screen(context.command_path, as_json=output.json) as screen:
        pictures = Round(arguments, shots, screen, model, context.obj, recursive=recursive)
        rankings = pictures.replies(
            lambda vlm, several: vlm.classify(
                several,
                wanted,
                length_normalized=length_normalized,
                calibrated=calibrated,
                on_error="return",
                **closely,
            )
        )
        for ranking, name in rankings:
            screen.ranking(ranking, name)
        return screen.code


def _read_labels(path: Path | None) -> list[str]:
    """The lines of a file of labels that are not blank."""
    text = "" if path is None else read_text_file("--labels-file", path, "one label per line")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _refuse_words(arguments: Sequence[str], remark: str) -> None:
    for argument in arguments:
        if reads_like_words(argument):
            raise BadPrompt(f"{argument!r} is not a picture, and {remark}")
