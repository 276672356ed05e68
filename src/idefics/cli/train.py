"""`idefics train`: fine-tunes a model on a person's own pictures and texts; an adapter, or a whole small model."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.cli.batch_runs import INTERRUPTED, command_line
from idefics.cli.command import command
from idefics.cli.flags import values_for
from idefics.cli.output import OutputWriter
from idefics.cli.train_flags import (
    LearnFlags,
    StepsFlags,
    TrainDataFlags,
    TrainModelFlags,
    TrainOutputFlags,
    WatchFlags,
)
from idefics.cli.train_progress import TrainProgress
from idefics.errors import BadSetting

if TYPE_CHECKING:
    from idefics.train.records import TrainingListener
    from idefics.train.settings import TrainSettings
    from idefics.train.training import TrainResult


@command(
    "idefics train --data photos/ --out my-adapter --model demo --steps 20",
    "idefics train --data photos/ --model demo --show 3",
    "idefics train --data train.jsonl --val val.jsonl --out my-adapter --dry-run",
    "idefics train --data train.jsonl --val val.jsonl --out my-model --full --model demo --epochs 3",
    "idefics train --data train.jsonl --out my-adapter --quantize nf4",
    has_json=False,
)
def train(
    writer: OutputWriter,
    data: TrainDataFlags,
    model: TrainModelFlags,
    learn: LearnFlags,
    steps: StepsFlags,
    watch: WatchFlags,
    outputs: TrainOutputFlags,
) -> None:
    """Fine-tune a model on your own pictures and texts.

    The result is an adapter (LoRA), a small folder for --adapter of every command, or with --full a whole model. Only
    answers are learned, no question and no picture; no row is cut.

    Before anything long begins, the memory is forecast and one batch is computed. Ctrl-C ends training with a
    checkpoint, and the same command with --resume goes on as if it had not been stopped. DIR.training/report.html has
    the curves, and answers before and after.
    """
    from idefics.train.settings import TrainSettings

    if data.show is not None and data.show < 1:
        raise BadSetting(f"--show is {data.show}; give a number of rows above 0")
    out = outputs.out
    if out is None:
        if data.show is None and not watch.dry_run:
            raise BadSetting("nothing says where the result goes: give --out DIR")
        out = Path("adapter")  # nothing is written
    values = values_for(TrainSettings, data, model, learn, steps, watch)
    values["modules_to_save"] = tuple(filter(None, learn.modules_to_save.split(",")))
    settings = TrainSettings(**values, method="full" if learn.full else "lora", out=out)
    if data.show is not None:
        _show_rows(writer, settings, data.show)
        return
    _train(writer, settings, watch)


def _show_rows(writer: OutputWriter, settings: TrainSettings, num_rows: int) -> None:
    """Prints the first rows as the model sees them."""
    from idefics.train.data.training_rows import read_training_rows
    from idefics.train.show import show_rows
    from idefics.train.trainee import find_trainable_checkpoint, make_processor

    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    rows = read_training_rows(settings.data, checkpoint, processor, settings)
    in_colour = writer.is_interactive and "NO_COLOR" not in os.environ
    for text in show_rows(rows, processor.tokenizer, num_rows, in_colour=in_colour):
        print(text)


def _train(writer: OutputWriter, settings: TrainSettings, watch: WatchFlags) -> None:
    """Trains, and prints what came of it."""
    from idefics.train.checkpoints import find_checkpoint
    from idefics.train.logs import TensorBoardLog
    from idefics.train.processes import join_processes
    from idefics.train.training import run

    is_first = join_processes().is_first  # of several processes, the one that prints and writes
    with ExitStack() as stack:
        listeners: list[TrainingListener] = []
        if is_first:
            listeners.append(TrainProgress(writer))
        if is_first and watch.tensorboard and not watch.dry_run:
            log = TensorBoardLog(settings.training_folder / "tensorboard")
            listeners.append(stack.enter_context(log))
        try:
            result = run(settings, listeners, resume=watch.resume, dry_run=watch.dry_run)
        except KeyboardInterrupt:
            if is_first and (path := find_checkpoint(settings.training_folder)) is not None:
                writer.print_status(f"stopped; to go on from {path}: {command_line('--resume')}")
            raise
    writer.progress.stop()
    if is_first and not watch.dry_run:
        _print_end(writer, settings, result)


def _print_end(writer: OutputWriter, settings: TrainSettings, result: TrainResult) -> None:
    """Prints what was written, and what to do next."""
    if result.out is None:
        writer.print_status(
            f"stopped after step {result.step:,} of {result.num_steps:,}: {result.checkpoint}"
        )
        writer.print_status(f"to go on: {command_line('--resume')}")
        writer.exit_code = INTERRUPTED
        return
    print(
        f"{result.out} was written: {result.num_parameters:,} numbers, learned in {result.num_steps:,} steps"
    )
    print(f"report: {settings.training_folder / 'report.html'}")
    for what, words in _next_commands(settings, result.out):
        print(f"{what}: {shlex.join(['idefics', *words])}")


def _next_commands(settings: TrainSettings, out: Path) -> list[tuple[str, list[str]]]:
    """Commands that use the result: (what for, the words after `idefics`)."""
    if settings.method == "full":
        use = ["--model", _as_folder(out)]
        merge = []
    else:
        use = ["--model", settings.model, "--adapter", str(out)]
        merged = [settings.model, str(out), "--out", f"{out}-merged"]
        merge = [("to make one model of both", ["merge", *merged])]
    tiles = [] if settings.max_tiles is None else ["--max-tiles", str(settings.max_tiles)]
    return [
        ("to ask", ["ask", "photo.jpg", "What is it?", *use, *tiles]),
        ("to ask on a page", ["ui", *use]),
        *merge,
        ("to score it", ["eval", *_suite_words(settings), *use, "--out", f"{out}-eval.json"]),
    ]


def _suite_words(settings: TrainSettings) -> list[str]:
    """What `idefics eval` scores: the validation data; else of a suite that was learned the split to test with."""
    from idefics.train.data.sources import find_suite

    named = find_suite(settings.val or settings.data)
    if named is None:
        return ["folder", "--data", settings.val or "test.csv"]
    split = named.split if settings.val else ""
    flags = {"--data": named.location, "--split": "" if split == named.suite.split else split}
    return [named.suite.name, *(word for flag in flags.items() if flag[1] for word in flag)]


def _as_folder(path: Path) -> str:
    """The path as `--model` takes it for a folder, not for a short name or an id."""
    text = str(path)
    return text if path.is_absolute() or text.startswith(".") else f"./{text}"
