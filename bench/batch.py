"""Batch runs: rows a second next to transformers, work done again after a kill, memory, and a Ray cluster.

`python bench/batch.py [--case captions|classify|resume|memory|ray] [--model smolvlm-256m]`
captions   photographs from files, as released (17 tiles) and in one tile, 32 tokens each, by `map`; transformers in
           a plain loop and with batches of 8, whose pictures are preprocessed before the time is taken
classify   8 shots and 20 labels by `map`, one tile a picture. transformers' loop scores a few labels, and their
           time is multiplied
resume     `idefics run` killed at half and run again: answers computed in all, for each row
memory     100,000 rows of the demo: memory of the process at its largest, as a multiple of that after 5,000 rows
ray        two engines of one thread each on a local cluster, and one such engine in this process
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import idefics
from baselines import TransformersBaseline
from batch_runs import QUICK_SIZE, BenchmarkSize, measure_memory, measure_ray, measure_resume
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import BenchmarkReport, run_rounds, time_call
from idefics_runner import classification_prompt, random_photo
from reuse import LABELS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH_SIZE = 8  # of transformers' batches
CAPTION_TOKENS = 32


def write_photos(folder: Path, count: int, first: int) -> list[Path]:
    """Photographs as JPEG files, which no round before has used."""
    paths = [folder / f"{number}.jpg" for number in range(first, first + count)]
    for path in paths:
        if not path.exists():
            random_photo(int(path.stem)).save(path, quality=90)
    return paths


def measure_captions(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Captions a second from files, of this package in two formats and of transformers in its dtypes."""
    for folder, count in (
        (get_checkpoint(name), size.num_tiled),
        (copy_without_image_splitting(get_checkpoint(name)), size.num_untiled),
    ):
        with TemporaryDirectory() as photos:
            _compare_captions(report, folder, Path(photos), count, size.num_rounds)


def _compare_captions(
    report: BenchmarkReport, folder: Path, photos: Path, count: int, num_rounds: int
) -> None:
    models = {"default": idefics.load(folder), "int8": idefics.load(folder, quantize="int8")}
    runs: dict[str, Callable[[int], float]] = {}
    for kind, vlm in models.items():

        def run_map(number: int, vlm: idefics.Idefics = vlm) -> float:
            paths = write_photos(photos, count, 1000 * number)
            vlm.engine.clear_caches()
            results: list[idefics.MapResult] = []
            seconds = time_call(
                lambda: results.extend(vlm.map(paths, max_new_tokens=CAPTION_TOKENS, ordered=False))
            )
            num_tokens = sum(done.result.usage.completion_tokens for done in results)  # type: ignore[union-attr]
            return num_tokens / CAPTION_TOKENS / seconds  # random weights may stop early

        runs[f"ours, {kind}"] = run_map
    for kind, dtype in DTYPES.items():
        baseline = TransformersBaseline(folder, dtype)
        for batch_size in (1, BATCH_SIZE):

            def run_transformers(
                number: int, baseline: TransformersBaseline = baseline, batch_size: int = batch_size
            ) -> float:
                pictures = [idefics.Picture(path) for path in write_photos(photos, count, 1000 * number)]
                detail = idefics.ImageDetail()
                prompts = [
                    models["default"].task_prompt(idefics.tasks.TASKS["caption"], one, "", detail)
                    for one in pictures
                ]
                batches = [prompts[start : start + batch_size] for start in range(0, count, batch_size)]
                seconds = time_call(lambda: [baseline.run(batch, CAPTION_TOKENS) for batch in batches])
                return count / seconds

            how = "loop" if batch_size == 1 else f"batches of {batch_size}"
            runs[f"transformers {kind}, {how}"] = run_transformers
    rates = {who: statistics.median(found) for who, found in run_rounds(runs, num_rounds).items()}
    case = f"{folder.name}, captions of {CAPTION_TOKENS} tokens"
    for who, rate in rates.items():
        report.add_figure(case, who, rate, "captions/s")
    best = max(rate for who, rate in rates.items() if who.startswith("transformers"))
    report.add_target(f"{case}: int8 / transformers at its best", rates["ours, int8"] / best, min_value=4)
    report.add_target(
        f"{case}: default / transformers at its best", rates["ours, default"] / best, min_value=1
    )


def measure_classification(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Few-shot classification, 8 shots and 20 labels."""
    folder = copy_without_image_splitting(get_checkpoint(name))
    labels = LABELS[: size.num_labels]
    shots = [
        idefics.Shot(idefics.Picture(random_photo(n)), labels[n % len(labels)]) for n in range(size.num_shots)
    ]
    vlm = idefics.load(folder).with_shots(shots)
    prompt, continuations = classification_prompt(vlm, labels, idefics.Picture(random_photo(1)))
    case = f"{folder.name}, {size.num_shots} shots, {len(labels)} labels"
    with TemporaryDirectory() as photos:
        paths = write_photos(Path(photos), size.num_classified, 5000)
        seconds = time_call(lambda: list(vlm.map(paths, "classify", labels=labels, ordered=False)))
    rate = size.num_classified / seconds
    report.add_figure(
        case, "ours, default", rate, "rows/s", f"{len(prompt)} tokens of prompt; shots read once"
    )
    best = 0.0
    for kind, dtype in DTYPES.items():
        baseline = TransformersBaseline(folder, dtype)
        baseline.continuation_logprob(prompt, continuations[0])
        seconds_per_label = statistics.median(
            time_call(lambda ids=ids: baseline.continuation_logprob(prompt, ids))  # type: ignore[misc] # noqa: B023 # called at once
            for ids in continuations[1:4]
        )
        best = max(best, 1 / (seconds_per_label * len(labels)))
        note = f"extrapolated: {seconds_per_label:.2f} s for a label"
        report.add_figure(
            case, f"transformers {kind}, loop", 1 / (seconds_per_label * len(labels)), "rows/s", note
        )
    report.add_target(f"{case}: rows a second / transformers'", rate / best, min_value=20)


CASES = {
    "captions": measure_captions,
    "classify": measure_classification,
    "resume": measure_resume,
    "memory": measure_memory,
    "ray": measure_ray,
}


def main() -> None:
    """Reads the command line, measures the chosen cases and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rounds", type=int, default=BenchmarkSize.num_rounds, help="of the case captions")
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, one round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("IDEFICS_FEATURE_CACHE", "0")
    demo_folder = Path(idefics.__file__).parent / "demo" / "idefics3"
    report = BenchmarkReport("batch", is_quick=arguments.quick)
    for case in arguments.case or CASES:
        size = QUICK_SIZE if arguments.quick else BenchmarkSize(num_rounds=arguments.rounds)
        CASES[case](report, str(demo_folder) if arguments.quick else arguments.model, size)
    report.print_report()


if __name__ == "__main__":
    main()
