"""The commands of the tasks: caption, complete, ask, classify and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from idefics.cli import help_format
from idefics.cli.flags import (
    ImageDetailFlags,
    ModelFlags,
    OutputFlags,
    PositionalArguments,
    PromptFlag,
    RecursiveFlag,
    ShotsFlag,
)
from idefics.cli.output import OutputWriter
from idefics.cli.picture_batches import PictureBatches
from idefics.cli.pictures import is_sentence, split_prompt
from idefics.cli.sampling import SamplingFlags
from idefics.cli.text_files import read_text_file
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.messages import Answer
from idefics.tasks import TASKS
from idefics.tasks.classify import check_and_strip_labels
from idefics.tasks.task import Task

if TYPE_CHECKING:
    from idefics import Stream

PICTURES_HELP = """
A PICTURE is a file, a folder, a pattern such as "photos/*.jpg", an http(s) address, or - for standard input.
Models trained on video also accept videos: clip.mp4. HEIC needs pip install 'idefics[heif]'.

Each picture of a folder is read once, hidden files never; --recursive searches subfolders too, and so does a
pattern with **. Standard error says how many files were skipped.

For one picture the answer alone is printed; for several, a folder or a pattern one line each, "name: answer".
--json always prints the name. Files that cannot be read are reported on standard error and the others are answered;
the exit code is then 2.
"""

_label_option = partial(typer.Option, rich_help_panel="Labels")
LabelsFlag = Annotated[
    str | None,
    _label_option("--labels", metavar="LABEL,LABEL", help="Labels to choose from, separated by commas."),
]
LabelFlag = Annotated[
    list[str] | None,
    _label_option("--label", metavar="LABEL", help="One label, which may contain a comma; repeatable."),
]
LabelsFileFlag = Annotated[
    Path | None,
    _label_option("--labels-file", metavar="FILE", help="File of labels, one per line; - is standard input."),
]
LengthNormalizedFlag = Annotated[
    bool, _label_option("--length-normalized", help="Divide each label's score by its number of tokens.")
]
CalibratedFlag = Annotated[
    bool, _label_option("--calibrated", help="Subtract each label's score for a plain gray picture.")
]


@dataclass(frozen=True)
class CommandHelp:
    """What the help of a task's command adds to the task's own summary."""

    usage: str
    note: str
    examples: tuple[str, ...]


HELP_BY_TASK = {
    "caption": CommandHelp(
        "PICTURE...",
        "It takes no text; `idefics ask` and `idefics complete` do.",
        (
            "idefics caption photo.jpg",
            "idefics caption photos/ > captions.txt",
            "idefics caption photo.jpg --shots shots.jsonl",
            "cat photo.jpg | idefics caption - --json",
        ),
    ),
    "complete": CommandHelp(
        "PICTURE... TEXT",
        "The text comes last, in quotes, or with --prompt; the answer begins with it.",
        (
            'idefics complete photo.jpg "This is an image of"',
            'idefics complete *.jpg "The ground is" --max-new-tokens 12',
        ),
    ),
    "ask": CommandHelp(
        "PICTURE... QUESTION",
        "The question comes last, in quotes, or with --prompt.",
        (
            'idefics ask photo.jpg "What is on the table?"',
            'idefics ask *.jpg "How many people are there?"',
            'idefics ask photo.jpg --prompt "Is it day or night?" --choices day,night --json',
        ),
    ),
    "classify": CommandHelp(
        "PICTURE... --labels LABEL,LABEL",
        "To a pipe or file only the best label is printed; --json prints all with their probabilities.",
        (
            'idefics classify photo.jpg --labels "cat,dog,bird"',
            'idefics classify photo.jpg --label "red, round" --label "blue, square"',
            'idefics classify photos/ --labels "indoors,outdoors" --calibrated --json',
            "idefics classify photo.jpg --labels-file labels.txt",
        ),
    ),
    "write": CommandHelp(
        "PICTURE... [INSTRUCTION]",
        "The instruction comes last, in quotes, or with --prompt.",
        (
            "idefics write photo.jpg",
            'idefics write photo.jpg "Write a short advertisement for this." --max-new-tokens 120',
            "idefics write photo.jpg --temperature 0.8 --top-p 0.95 --seed 7",
        ),
    ),
}


def register(app: typer.Typer) -> None:
    """Adds a command for each task to the application."""
    special_commands: dict[str, help_format.CommandFunction] = {"caption": _caption, "classify": _classify}
    for task in TASKS.values():
        command_help = HELP_BY_TASK[task.name]
        run = special_commands.get(task.name) or _make_task_command(task)
        help = f"{task.help}\n\n{command_help.note}\n{PICTURES_HELP}"
        help_format.add_command(
            app, task.name, run, help=help, usage=command_help.usage, examples=command_help.examples
        )


def _caption(
    context: typer.Context,
    arguments: PositionalArguments,
    shots: ShotsFlag = None,
    recursive: RecursiveFlag = False,
    *,
    model: ModelFlags,
    sampling: SamplingFlags,
    output: OutputFlags,
) -> int:
    """Runs `idefics caption`; returns its exit code."""
    _refuse_words(arguments, "caption takes no text: for a question use `idefics ask`")
    return _run_task(TASKS["caption"], context, arguments, "", shots, recursive, model, sampling, output)


def _make_task_command(task: Task) -> help_format.CommandFunction:
    """Makes the command of a task that takes a prompt."""

    def run(
        context: typer.Context,
        arguments: PositionalArguments,
        prompt: PromptFlag = None,
        shots: ShotsFlag = None,
        recursive: RecursiveFlag = False,
        *,
        model: ModelFlags,
        sampling: SamplingFlags,
        output: OutputFlags,
    ) -> int:
        names, words = split_prompt(arguments, prompt, task.words_name)
        words = task.default_words if words is None else words
        if words is None:
            raise BadPrompt(f"no {task.words_name} given: put it last, in quotes, or use --prompt")
        if not words.strip():
            raise BadPrompt(f"the {task.words_name} is empty: put it last, in quotes, or use --prompt")
        return _run_task(task, context, names, words.strip(), shots, recursive, model, sampling, output)

    return run


def _run_task(
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
    """Runs a task on all pictures and writes the answers; a single picture's is streamed on a terminal."""
    options = sampling.options(as_json=output.json)
    with OutputWriter(context.command_path, as_json=output.json) as writer:
        batches = PictureBatches(arguments, shots, writer, model, context.obj, recursive=recursive)
        if writer.is_interactive and not writer.shows_picture_names:
            for named in batches.readable_pictures(batches.pictures):
                stream = batches.vlm.run(task, named.picture, words, stream=True, **options)
                writer.write_stream(cast("Stream", stream))
        else:
            answers = batches.results(
                lambda vlm, several: cast(
                    "list[Answer | IdeficsError]", vlm.run(task, several, words, on_error="return", **options)
                )
            )
            for answer, name in answers:
                writer.write_answer(answer, name, batches.vlm)
        return writer.exit_code


def _classify(
    context: typer.Context,
    arguments: PositionalArguments,
    labels: LabelsFlag = None,
    label: LabelFlag = None,
    labels_file: LabelsFileFlag = None,
    length_normalized: LengthNormalizedFlag = False,
    calibrated: CalibratedFlag = False,
    shots: ShotsFlag = None,
    recursive: RecursiveFlag = False,
    *,
    model: ModelFlags,
    detail_flags: ImageDetailFlags,
    output: OutputFlags,
) -> int:
    """Runs `idefics classify`; returns its exit code."""
    detail_options = detail_flags.image_detail_options()
    _refuse_words(arguments, 'labels are given as --labels "cat,dog"')
    label_list = [*(labels.split(",") if labels else ()), *(label or ()), *_read_labels(labels_file)]
    if not label_list:
        raise BadSetting(
            'no labels given: --labels "cat,dog", --label cat --label dog, or --labels-file FILE'
        )
    label_list = check_and_strip_labels(label_list)
    with OutputWriter(context.command_path, as_json=output.json) as writer:
        batches = PictureBatches(arguments, shots, writer, model, context.obj, recursive=recursive)
        rankings = batches.results(
            lambda vlm, several: vlm.classify(
                several,
                label_list,
                length_normalized=length_normalized,
                calibrated=calibrated,
                on_error="return",
                **detail_options,
            )
        )
        for ranking, name in rankings:
            writer.write_ranking(ranking, name)
        return writer.exit_code


def _read_labels(path: Path | None) -> list[str]:
    """The lines of a file of labels; blank lines are left out."""
    text = "" if path is None else read_text_file("--labels-file", path, "one label per line")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _refuse_words(arguments: Sequence[str], hint: str) -> None:
    """Raises BadPrompt if an argument is a sentence: commands without a prompt take pictures only."""
    for argument in arguments:
        if is_sentence(argument):
            raise BadPrompt(f"{argument!r} is not a picture, and {hint}")
