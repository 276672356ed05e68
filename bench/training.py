"""`idefics train` compared with transformers and peft, as published notebooks train: tokens a second and peak memory.

`python bench/training.py [--model smolvlm-256m] [--rows 16] [--batch-size 4] [--epochs 2]`

Both train factors of rank 16 for the decoder's linear layers, on the same rows in the same order with the same learning
rates; the vision tower is frozen. Each system runs in a process of its own, whose peak memory is measured. transformers
gets padded batches with labels for the answers only, and encodes the pictures of each batch without gradients. One tile
a picture.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import idefics
from checkpoints import copy_without_image_splitting, get_checkpoint
from comparison import DTYPES
from harness import BenchmarkReport
from idefics.train.data.training_rows import read_training_rows
from idefics.train.rows import TrainingRow
from idefics.train.schedule import make_schedule
from idefics.train.settings import TrainSettings
from idefics.train.trainable import part_of
from idefics.train.trainee import find_trainable_checkpoint, load_trainee, make_processor
from idefics.train.trainer import Trainer
from idefics_runner import random_photo

OURS, THEIRS = "idefics", "transformers"
ANSWER = "It shows a pattern of many colours, without any thing in it that one could name."
QUICK_ROWS = 4


def write_rows(folder: Path, num_rows: int) -> Path:
    """Writes pictures, and a table with a question and an answer about each."""
    rows = []
    for number in range(num_rows):
        random_photo(number).save(folder / f"{number}.png")
        question = "What does this picture show? " + "Tell me more. " * (number % 4)
        rows.append({"image": f"{number}.png", "question": question, "answer": ANSWER})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_settings(arguments: argparse.Namespace) -> TrainSettings:
    """The settings of the training that both systems run."""
    return TrainSettings(
        data=arguments.data,
        model=arguments.model,
        out=Path(arguments.data).parent / "out",
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        warmup_steps=1,
    )


def run_ours(settings: TrainSettings) -> list[tuple[int, float, float]]:
    """Trains with this package; returns tokens, seconds and loss of each step."""
    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    rows = read_training_rows(settings.data, checkpoint, processor, settings)
    trainee = load_trainee(checkpoint, settings)
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, settings.training_folder)

    def step(number: int) -> tuple[int, float]:
        record = trainer.run_step(number, trainer.prepare_step(number))
        return record.num_tokens, record.loss

    return time_steps(step, trainer.num_steps)


def run_theirs(settings: TrainSettings, dtype: torch.dtype) -> list[tuple[int, float, float]]:
    """Trains with transformers and peft; returns tokens, seconds and loss of each step."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    checkpoint = find_trainable_checkpoint(settings)
    processor = make_processor(checkpoint)
    rows = read_training_rows(settings.data, checkpoint, processor, settings)
    base = AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=dtype)
    names = [
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and part_of(name) == "text"
    ]
    config = LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha), target_modules=names)
    model = get_peft_model(base, config).train()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, weight_decay=settings.weight_decay)
    schedule = make_schedule(settings, len(rows))

    def step(number: int) -> tuple[int, float]:
        some = [rows[index] for index in schedule.rows_of_step(number)]
        loss = model(**collate(some, dtype)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, settings.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(number)
        optimizer.step()
        optimizer.zero_grad()
        return sum(map(len, some)), loss.item()

    return time_steps(step, schedule.num_steps)


def collate(rows: Sequence[TrainingRow], dtype: torch.dtype) -> dict[str, Tensor]:
    """A padded batch as transformers takes it, with the labels of learned tokens only."""
    width = max(map(len, rows))
    ids, labels, mask = (np.full((len(rows), width), fill) for fill in (0, -100, 0))
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row.ids, 1
        labels[index, : len(row)] = np.where(row.is_target, row.ids, -100)
    frames = np.stack([np.stack(picture.frames) for row in rows for picture in row.read_pictures()])
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "pixel_values": torch.from_numpy(frames).to(dtype),
    }


def time_steps(step: Callable[[int], tuple[int, float]], num_steps: int) -> list[tuple[int, float, float]]:
    """Runs all steps, reading of rows and pictures included."""
    found = []
    for number in range(1, num_steps + 1):
        started = time.perf_counter()
        num_tokens, loss = step(number)
        found.append((num_tokens, time.perf_counter() - started, loss))
    return found


def run_in_process(arguments: argparse.Namespace, who: str) -> dict[str, Any]:
    """Runs one system in a process of its own; returns what it printed."""
    flags = {
        "--data": arguments.data,
        "--model": arguments.model,
        "--epochs": arguments.epochs,
        "--batch-size": arguments.batch_size,
        "--only": who,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_one(arguments: argparse.Namespace) -> None:
    """Runs one system in this process, and prints its steps and its peak memory as JSON."""
    settings, (who, _, kind) = make_settings(arguments), arguments.only.partition(" ")
    steps = run_ours(settings) if who == OURS else run_theirs(settings, DTYPES[kind])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"steps": steps, "peak": peak}))


def add_system(
    report: BenchmarkReport, case: str, who: str, found: dict[str, Any], num_first: int
) -> list[float]:
    """Adds the figures of a system; returns tokens a second of the first epoch and of all, and the peak in bytes."""
    steps = found["steps"]
    speeds = [
        sum(tokens for tokens, _, _ in some) / sum(seconds for _, seconds, _ in some)
        for some in (steps[1:num_first], steps[1:])
    ]
    report.add_figure(case, who, speeds[0], "tokens/s", f"first epoch; last loss {steps[-1][2]:.3f}")
    report.add_figure(case, who, speeds[1], "tokens/s", "all epochs")
    report.add_figure(case, who, found["peak"] / 1e9, "GB", "peak memory of the process")
    return [*speeds, found["peak"]]


def compare(report: BenchmarkReport, arguments: argparse.Namespace) -> None:
    """Runs all systems; the first step of each is not counted."""
    model = Path(arguments.model).name
    case = f"{model}, {arguments.rows} rows, batches of {arguments.batch_size}, {arguments.epochs} epochs"
    num_first = max(2, arguments.rows // arguments.batch_size)
    ours = add_system(report, case, OURS, run_in_process(arguments, OURS), num_first)
    theirs = [
        add_system(report, case, f"{THEIRS} {kind}", run_in_process(arguments, f"{THEIRS} {kind}"), num_first)
        for kind in DTYPES
    ]
    for index, name in enumerate(("first epoch", "all epochs")):
        best = max(one[index] for one in theirs)
        report.add_target(f"{case}: tokens/s / transformers, {name}", ours[index] / best, min_value=2.0)
    report.add_target(
        f"{case}: peak memory / transformers", ours[2] / min(one[2] for one in theirs), max_value=0.6
    )


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, few rows")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one system, in a process that this script starts
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.only:
        print_one(arguments)
        return
    if arguments.quick:
        arguments.model, arguments.rows, arguments.batch_size = (
            Path(idefics.__file__).parent / "demo" / "idefics3",
            QUICK_ROWS,
            2,
        )
    else:
        arguments.model = copy_without_image_splitting(get_checkpoint(arguments.model))
    report = BenchmarkReport("training", is_quick=arguments.quick)
    with TemporaryDirectory() as folder:
        arguments.data = write_rows(Path(folder), arguments.rows)
        compare(report, arguments)
    report.print_report()


if __name__ == "__main__":
    main()
