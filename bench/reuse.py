"""What caches save: a second question, few-shot classification, ranking; compared with transformers.

`python bench/reuse.py [--case second|process|shots|ranking] [--model smolvlm-256m]`
second   another question about a picture of 17 tiles that is cached: time to the first token
process  `idefics ask` about a photo of 17 tiles, and again in a new process: start to the first token
shots    100 pictures with 8 shots and 20 labels, one tile a picture. transformers' loop scores a few labels, and their
         time is multiplied: the loop has 2,000 equal rounds
ranking  20 labels for one new picture of 17 tiles
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import idefics
from baselines import TransformersBaseline
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import BenchmarkReport, RunTiming, median_first_token_seconds, run_rounds, time_call
from idefics.prompt import Prompt
from idefics_runner import IdeficsRunner, classification_prompt, random_photo
from start import run_python

LABELS = [
    "a red apple", "a green pear", "a dog", "a cat", "a small boat", "a tall tower", "a bridge", "a garden",
    "a kitchen", "a bicycle", "a train", "an aeroplane", "a yellow flower", "a lake", "a mountain", "a street at night",
    "a chair", "a blue vase", "a horse", "a sheet of paper",
]  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of rounds, pictures, shots and labels; small for `--quick`."""

    num_rounds: int = 3
    num_pictures: int = 100
    num_shots: int = 8
    num_labels: int = 20


QUICK_SIZE = BenchmarkSize(num_rounds=1, num_pictures=3, num_shots=2, num_labels=3)


def measure_second_question(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """A new question about a picture that was asked about before."""
    runner, folder = IdeficsRunner(get_checkpoint(name), "bf16"), get_checkpoint(name)

    def prompt(number: int, words: str) -> list[Prompt]:
        return [runner.vlm.prompt([idefics.Picture(random_photo(number)), words])]

    def run_second_question(number: int) -> RunTiming:
        runner.run(prompt(number, "What is in the picture?"), 1)
        return runner.run(prompt(number, "Which colours does it have?"), 1)

    runs: dict[str, Callable[[int], RunTiming]] = {"ours": run_second_question}
    runs["ours, first question"] = lambda number: runner.run(prompt(1000 + number, "What is it?"), 1)
    for kind, dtype in DTYPES.items():
        baseline = TransformersBaseline(folder, dtype)
        runs[f"transformers {kind}"] = lambda number, baseline=baseline: baseline.run(  # type: ignore[misc]
            prompt(number, "Which colours does it have?"), 1
        )
    timings_by_system = run_rounds(runs, size.num_rounds)
    for who, timings in timings_by_system.items():
        report.add_figure(
            f"{folder.name}, second question on a picture, first token",
            who,
            median_first_token_seconds(timings),
            "s",
        )
    ratio = median_first_token_seconds(timings_by_system["ours"]) / min(
        median_first_token_seconds(timings_by_system[f"transformers {kind}"]) for kind in DTYPES
    )
    report.add_target(f"{folder.name}: second question, ours / transformers", ratio, max_value=0.05)


def measure_new_process(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """A question about a new photo, and another one in a new process, which reads the features from a file."""
    folder, seconds = get_checkpoint(name), defaultdict[str, list[float]](list)
    questions = {
        "first question": "What is in the picture?",
        "second question": "Which colours does it have?",
    }
    with TemporaryDirectory() as cache_folder:
        variables = {"IDEFICS_FEATURE_CACHE": "1", "XDG_CACHE_HOME": cache_folder}
        for number in range(size.num_rounds):
            photo = Path(cache_folder) / f"{number}.png"
            random_photo(number).save(photo)
            for who, words in questions.items():
                ask = [
                    "-m",
                    "idefics",
                    "ask",
                    str(photo),
                    words,
                    "--model",
                    str(folder),
                    "--max-new-tokens",
                    "1",
                ]
                seconds[who].append(run_python(ask, **variables).first_output_seconds)
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    for who, median in medians.items():
        report.add_figure(
            f"{folder.name}, `idefics ask` about one photo, start to first token", who, median, "s"
        )
    ratio = medians["second question"] / medians["first question"]
    report.add_target(f"{folder.name}: second question in a new process / first", ratio, max_value=0.2)


def measure_few_shot(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Classification of many pictures with the same shots and labels."""
    folder = copy_without_image_splitting(get_checkpoint(name))
    runner, labels = IdeficsRunner(folder, "bf16"), LABELS[: size.num_labels]
    shots_given = [idefics.Shot(_random_picture(n), labels[n % len(labels)]) for n in range(size.num_shots)]
    few_shot_vlm = runner.vlm.with_shots(shots_given)
    idefics_seconds = time_call(
        lambda: few_shot_vlm.classify([_random_picture(1000 + n) for n in range(size.num_pictures)], labels)
    )
    prompt, continuations = classification_prompt(few_shot_vlm, labels, _random_picture(1))
    case = f"{folder.name}, {size.num_pictures} pictures, {size.num_shots} shots, {len(labels)} labels"
    report.add_figure(case, "ours", idefics_seconds, "s", f"{len(prompt)} tokens of prompt")
    transformers_seconds = []
    for kind, dtype in DTYPES.items():
        baseline = TransformersBaseline(folder, dtype)
        baseline.continuation_logprob(prompt, continuations[0])
        seconds_per_label = statistics.median(
            time_call(lambda ids=ids: baseline.continuation_logprob(prompt, ids))  # type: ignore[misc] # noqa: B023 # called at once
            for ids in continuations[1:4]
        )
        transformers_seconds.append(seconds_per_label * len(labels) * size.num_pictures)
        note = f"extrapolated: {seconds_per_label:.2f} s for a label of a picture"
        report.add_figure(case, f"transformers {kind}, loop over labels", transformers_seconds[-1], "s", note)
    report.add_target(
        f"{case}: ours / transformers", idefics_seconds / min(transformers_seconds), max_value=0.05
    )


def measure_ranking(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Ranks many labels for one new picture."""
    folder, labels = get_checkpoint(name), LABELS[: size.num_labels]
    runner = IdeficsRunner(folder, "bf16")
    runner.vlm.classify(_random_picture(1), labels)
    idefics_seconds = statistics.median(
        time_call(lambda n=n: runner.vlm.classify(_random_picture(10 + n), labels))  # type: ignore[misc]
        for n in range(size.num_rounds)
    )
    case = f"{folder.name}, {len(labels)} labels for one picture"
    report.add_figure(case, "ours", idefics_seconds, "s", "its preprocessing included")
    prompt, continuations = classification_prompt(runner.vlm, labels, _random_picture(1))
    baseline = TransformersBaseline(folder, torch.bfloat16)
    baseline.continuation_logprob(prompt, continuations[0])
    seconds_per_label = time_call(lambda: baseline.continuation_logprob(prompt, continuations[1]))
    note = f"extrapolated: {seconds_per_label:.2f} s for a label"
    report.add_figure(case, "transformers bf16, loop over labels", seconds_per_label * len(labels), "s", note)


def _random_picture(number: int) -> idefics.Picture:
    return idefics.Picture(random_photo(number))


CASES = {
    "second": measure_second_question,
    "process": measure_new_process,
    "shots": measure_few_shot,
    "ranking": measure_ranking,
}


def main() -> None:
    """Reads the command line, measures the chosen cases and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rounds", type=int, default=BenchmarkSize.num_rounds)
    parser.add_argument("--pictures", type=int, default=BenchmarkSize.num_pictures, help="of the case shots")
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, one round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    demo_folder = Path(idefics.__file__).parent / "demo" / "idefics3"
    report = BenchmarkReport("reuse", is_quick=arguments.quick)
    for case in arguments.case or CASES:
        size = (
            QUICK_SIZE
            if arguments.quick
            else BenchmarkSize(num_rounds=arguments.rounds, num_pictures=arguments.pictures)
        )
        CASES[case](report, str(demo_folder) if arguments.quick else arguments.model, size)
    report.print_report()


if __name__ == "__main__":
    main()
