"""What rounding to bfloat16 and to int8 changes: logits of tiny models of every family, answers of the demo models.

`python bench/agreement.py [--scenes 25] [--quick]`. float32 is the reference. "bfloat16" is what `load` gives for a
model that is not small, on a processor with dot products of bfloat16; here it is used for small models too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import idefics
from harness import ROOT, BenchmarkReport
from idefics.quant import autotune

sys.path.insert(0, str(ROOT / "demo-model"))
from recipe.evaluation import evaluate
from vectors.cases import PROMPT_BY_CHECKPOINT
from vectors.checkpoint import CHECKPOINT_BY_NAME

DEMO_MODELS = ("demo", "demo-idefics1")
MAX_LOST_POINTS = {"bfloat16": 0.5, "int8": 0.5, "int4": 1.0}
LOAD_ARGUMENTS_BY_KIND: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize": "int8"},
    "int4": {"dtype": "bfloat16", "quantize": "int4"},
}
IMAGE_SIZE = 96  # pixels of the drawn pictures
SEED = 20262  # of scenes that neither training nor the evaluation of the demo models uses


@contextmanager
def kernels_for_small_models() -> Iterator[None]:
    """Small models get the kernels that large ones get."""
    least, autotune.MIN_TUNED_WEIGHTS = autotune.MIN_TUNED_WEIGHTS, 0
    try:
        yield
    finally:
        autotune.MIN_TUNED_WEIGHTS = least


def load(model: str | Path, kind: str) -> idefics.Idefics:
    """A model that computes in one kind of number."""
    if kind == "float32":
        return idefics.load(model, device="cpu", **LOAD_ARGUMENTS_BY_KIND[kind])
    with kernels_for_small_models():
        return idefics.load(model, device="cpu", **LOAD_ARGUMENTS_BY_KIND[kind])


def compare_logits(report: BenchmarkReport) -> None:
    """The largest difference of a logit, relative to the largest logit, and how many greedy tokens are equal."""
    for name, checkpoint in CHECKPOINT_BY_NAME.items():
        items = PROMPT_BY_CHECKPOINT[name]()
        with TemporaryDirectory() as folder:
            path = checkpoint.write(Path(folder))
            exact, rounded = load(path, "float32"), load(path, "bfloat16")
        # Both multiply with the same weights: what is left is the rounding of inputs.
        for mine, theirs in zip(
            exact.engine.model.parameters(), rounded.engine.model.parameters(), strict=True
        ):
            mine.data.copy_(theirs.data)
        expected, found = (vlm.logits(vlm.prompt(items)) for vlm in (exact, rounded))
        difference = float((found - expected).abs().max() / expected.abs().max())
        equal = int((found.argmax(-1) == expected.argmax(-1)).sum())
        note = f"{equal} of {len(expected)} greedy tokens are the same"
        report.add_figure("largest difference of a logit, of the largest logit", name, difference, "", note)


def compare_answers(report: BenchmarkReport, model: str, num_scenes: int) -> None:
    """The share of answers about drawn scenes that are equal to those in float32, and the share that is right."""
    answers_by_kind = {
        kind: list(evaluate(load(model, kind), num_scenes, SEED, IMAGE_SIZE, lambda _: None))
        for kind in LOAD_ARGUMENTS_BY_KIND
    }
    expected = answers_by_kind["float32"]
    right_by_kind: dict[str, float] = {}
    for kind, answers in answers_by_kind.items():
        num_equal = sum(one.answer == other.answer for one, other in zip(answers, expected, strict=True))
        right_by_kind[kind] = 100 * sum(one.is_correct for one in answers) / len(answers)
        report.add_figure(
            f"{model}, {len(expected)} answers",
            kind,
            right_by_kind[kind],
            "% right",
            f"{100 * num_equal / len(expected):.1f} % as in float32",
        )
    for kind, points in MAX_LOST_POINTS.items():
        report.add_target(
            f"{model}: points that {kind} loses",
            right_by_kind["float32"] - right_by_kind[kind],
            max_value=points,
        )


def main() -> None:
    """Reads the command line, compares and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenes", type=int, default=25, help="scenes of each kind of question")
    parser.add_argument("--quick", action="store_true", help="one scene of each, to test the script")
    arguments = parser.parse_args()
    report = BenchmarkReport("agreement", is_quick=arguments.quick)
    if not autotune.kernel_choice_by_processor().bfloat16:
        print("This processor has no dot products of bfloat16: such layers are computed in float32 here.")
    with torch.inference_mode():
        compare_logits(report)
    for model in DEMO_MODELS:
        compare_answers(report, model, 1 if arguments.quick else arguments.scenes)
    report.print_report()


if __name__ == "__main__":
    main()
