"""What an explanation costs, as a multiple of the answer itself, by both methods.

`python bench/explain.py [--model smolvlm-256m]`
The answer is 8 tokens about a new photo, whose picture is encoded; the explanation is of these 8 tokens and the same
photo, in a cache that holds nothing. Frames: how many went through the vision tower, and how
many without reuse of tiles.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import PIL.Image
from torch import Tensor

import idefics
from checkpoints import get_checkpoint
from harness import BenchmarkReport, time_call
from idefics_runner import random_photo

QUESTION, ANSWER, NUM_TOKENS = "What is in the picture?", "A red bird on a branch of a tree", 8
PHOTO_SIZE = 1200


@contextmanager
def count_frames(vlm: idefics.Idefics) -> Iterator[list[int]]:
    """Notes the number of frames of each batch that goes through the vision tower."""
    model = vlm.engine.model
    encode, counts = model.encode, []

    def encode_and_count(frames: Tensor) -> Tensor:
        counts.append(len(frames))
        return encode(frames)

    model.encode = encode_and_count  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        model.encode = encode  # type: ignore[method-assign]


def measure(report: BenchmarkReport, vlm: idefics.Idefics, name: str, num_rounds: int, size: int) -> None:
    """Times answers and explanations of new photos in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {"answer": [], "occlusion": [], "fast": []}
    calls: dict[str, Callable[[PIL.Image.Image], object]] = {
        "answer": lambda photo: vlm.ask(photo, QUESTION, max_new_tokens=NUM_TOKENS),
        "occlusion": lambda photo: vlm.explain(photo, QUESTION, ANSWER),
        "fast": lambda photo: vlm.explain(photo, QUESTION, ANSWER, method="fast"),
    }
    photo = random_photo(0, size)
    num_tiles = len(vlm.prompt([idefics.Picture(photo)]).pictures[0].frames)
    passes = vlm.explain(photo, QUESTION, ANSWER).num_passes
    for number in range(num_rounds + 1):
        for kind, call in calls.items():
            vlm.engine.clear_caches()
            with count_frames(vlm) as counts:
                seconds[kind].append(time_call(partial(call, random_photo(number, size))))
            if kind == "occlusion":
                frames = sum(counts)
    medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    for kind, value in medians.items():
        note = f"{value / medians['answer']:.1f} x the answer"
        if kind == "occlusion":
            note += f", {passes} passes, {frames} frames of {passes * num_tiles}"
        report.add_figure(f"{name}, a photo of {num_tiles} frames", kind, value, "s", note)
    ratio = medians["occlusion"] / medians["answer"] / passes
    report.add_target(f"{name}: explanation / as many answers as it has passes", ratio, max_value=1.0)


def main() -> None:
    """Reads the command line, measures the demo and the model, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, one round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    report = BenchmarkReport("explain", is_quick=arguments.quick)
    demo_folder = Path(idefics.__file__).parent / "demo" / "idefics3"
    folders = [demo_folder] if arguments.quick else [demo_folder, get_checkpoint(arguments.model)]
    for folder in folders:
        with idefics.load(folder, device="cpu", feature_cache=False) as vlm:
            measure(report, vlm, folder.name, 1 if arguments.quick else arguments.rounds, PHOTO_SIZE)
    report.print_report()


if __name__ == "__main__":
    main()
