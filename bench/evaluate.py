"""`idefics eval` with 8 shots and 20 labels a row, compared with a plain loop in transformers over rows and labels.

`python bench/evaluate.py [--rows 1000] [--compared-rows 3] [--model smolvlm-256m]`

transformers' loop scores some labels of a few rows, and their time is multiplied: the loop has 20,000 equal rounds. All
labels of the first rows are scored by it, to see that both decide alike. One tile a picture.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import idefics
from baselines import TransformersBaseline
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import BenchmarkReport, time_call
from idefics.batch.answerers import WorkItem
from idefics.batch.run_settings import RunSettings
from idefics.batch.sources.settings import SourceSettings
from idefics.cli.main import run
from idefics.evaluate.answerer import make_prompt_items, pictures_by_id
from idefics.evaluate.evaluation import Evaluation
from idefics.evaluate.evaluation_settings import EvaluationSettings, read_checkpoint_facts
from idefics.evaluate.suite import EvaluationRow
from idefics.generation.prompts import make_scoring_prompt
from idefics.prompt import ScoringPrompt
from idefics_runner import random_photo
from reuse import DTYPES, LABELS


@dataclass(frozen=True)
class EvaluationSize:
    """Numbers of rows, shots, labels, and rows that both decide; small for `--quick`."""

    num_rows: int = 1_000
    num_shots: int = 8
    num_labels: int = 20
    num_compared_rows: int = 3


QUICK_EVALUATION = EvaluationSize(num_rows=4, num_shots=2, num_labels=3, num_compared_rows=1)


def write_table(folder: Path, name: str, num_rows: int, size: EvaluationSize, first_number: int) -> Path:
    """Writes pictures and a table of their labels."""
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number in range(num_rows):
            picture = f"{first_number + number}.png"
            random_photo(first_number + number).save(folder / picture)
            writer.writerow([picture, LABELS[number % size.num_labels]])
    return path


def row_prompts(vlm: idefics.Idefics, evaluation: Evaluation, count: int) -> list[ScoringPrompt]:
    """The prompts of the first rows, with the token ids of each label, as `idefics eval` makes them."""
    prompts = []
    for row, _ in zip(evaluation.source, range(count), strict=False):
        assert isinstance(row, EvaluationRow)
        assert row.media is not None
        request = evaluation.prompts.make_request(row)
        text = request.to_text(evaluation.suite.labels)
        more = tuple(one.read() for one in evaluation.prompts.further_media(row, text))
        item = WorkItem(b"", row.media.read(), text, more)
        items = make_prompt_items(request, pictures_by_id(request, item), vlm.processor)
        prompts.append(make_scoring_prompt(vlm.processor, items, request.continuations))
    return prompts


def compare(report: BenchmarkReport, name: str, size: EvaluationSize) -> None:
    """Evaluates the rows, and measures transformers on some of them."""
    checkpoint = copy_without_image_splitting(get_checkpoint(name))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = write_table(folder, "rows.csv", size.num_rows, size, 0)
        support = write_table(folder, "shots.csv", size.num_labels, size, 100_000)
        out = folder / "report.json"
        flags = ["--data", str(table), "--support", str(support), "--shots", str(size.num_shots)]
        command = ["eval", "folder", *flags, "--model", str(checkpoint), "--out", str(out)]
        seconds = time_call(lambda: run(command))
        rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
        facts = read_checkpoint_facts(
            checkpoint, RunSettings(task="eval", model=str(checkpoint), revision="", fingerprint="")
        )
        settings = EvaluationSettings(
            suite="folder", data=str(table), support=str(support), num_shots=size.num_shots
        )
        with idefics.load(checkpoint) as vlm:
            prompts = row_prompts(
                vlm, Evaluation(settings, facts, lambda: vlm, SourceSettings()), size.num_compared_rows
            )
    case = f"{checkpoint.name}, {size.num_rows} rows, {size.num_shots} shots, {size.num_labels} labels"
    report.add_figure(
        case, "idefics eval", seconds, "s", f"loading included; {len(prompts[0].prompt)} tokens of prompt"
    )
    loops = [
        measure_loop(report, case, checkpoint, kind, dtype, prompts, size) for kind, dtype in DTYPES.items()
    ]
    report.add_figure(
        *(
            case,
            "largest difference of a label's score",
            largest_difference(checkpoint, prompts, rows),
            "nats",
        ),
        f"transformers fp32, {len(prompts)} rows; the decisions are equal",
    )
    report.add_target(f"{case}: ours / transformers", seconds / min(loops), max_value=0.05)


def largest_difference(checkpoint: Path, prompts: list[ScoringPrompt], rows: list[dict[str, Any]]) -> float:
    """How far the scores of labels are from those of transformers, in nats; ends the program if a decision differs."""
    baseline = TransformersBaseline(checkpoint, torch.float32)
    largest = 0.0
    for row, (prompt, continuations) in zip(rows, prompts, strict=False):
        theirs, ours = (
            [baseline.continuation_logprob(prompt, ids) for ids in continuations],
            row["label_scores"],
        )
        if ours.index(max(ours)) != theirs.index(max(theirs)):
            raise SystemExit(
                f"{row['name']}: transformers decides otherwise, with {theirs}; the scores are {ours}"
            )
        largest = max(largest, *(abs(one - other) for one, other in zip(ours, theirs, strict=True)))
    return largest


def measure_loop(
    report: BenchmarkReport,
    case: str,
    checkpoint: Path,
    kind: str,
    dtype: torch.dtype,
    prompts: list[ScoringPrompt],
    size: EvaluationSize,
) -> float:
    """Seconds of transformers' loop over all rows and labels, extrapolated from three labels of the first row."""
    baseline = TransformersBaseline(checkpoint, dtype)
    prompt, continuations = prompts[0]
    baseline.continuation_logprob(prompt, continuations[0])
    seconds = statistics.median(
        time_call(lambda ids=ids: baseline.continuation_logprob(prompt, ids))  # type: ignore[misc]
        for ids in continuations[:3]
    )
    note = f"extrapolated: {seconds:.2f} s for a label of a row"
    total = seconds * size.num_rows * size.num_labels
    report.add_figure(case, f"transformers {kind}, loop over rows and labels", total, "s", note)
    return total


def size_of(arguments: argparse.Namespace) -> EvaluationSize:
    """The sizes that the flags name."""
    return EvaluationSize(num_rows=arguments.rows, num_compared_rows=arguments.compared_rows)


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rows", type=int, default=EvaluationSize.num_rows)
    parser.add_argument(
        "--compared-rows", type=int, default=EvaluationSize.num_compared_rows, help="that both decide"
    )
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, few rows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    demo_folder = Path(idefics.__file__).parent / "demo" / "idefics3"
    report = BenchmarkReport("evaluate", is_quick=arguments.quick)
    size = QUICK_EVALUATION if arguments.quick else size_of(arguments)
    compare(report, str(demo_folder) if arguments.quick else arguments.model, size)
    report.print_report()


if __name__ == "__main__":
    main()
