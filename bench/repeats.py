"""Tokens drafted from the prompt: how quick answers are that repeat their prompt, and answers that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from checkpoints import get_checkpoint
from comparison import BenchmarkSize, compare_systems
from harness import BenchmarkReport, RunTiming, median_tokens_per_second
from idefics_runner import ForcedAnswer, IdeficsRunner, random_text_prompts

WEIGHT_FORMATS = ("bf16", "int8", "int4")


def measure_repeats(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Every weight format with and without drafts: an answer that is its prompt again, and one of other tokens."""
    folder, num_tokens = get_checkpoint(name), 4 * size.num_tokens
    runner_by_format = {kind: IdeficsRunner(folder, kind) for kind in WEIGHT_FORMATS}

    def run(runner: IdeficsRunner, has_drafts: bool, is_repeated: bool, number: int) -> RunTiming:
        # Other prompts than without drafts: their beginnings would be in the cache.
        prompt, other = random_text_prompts(folder, num_tokens, 2, 2 * number + has_drafts)
        answer = ForcedAnswer((prompt if is_repeated else other).ids, runner.engine.model.layout.vocab_size)
        runner.has_drafts = has_drafts
        return runner.run([prompt], num_tokens, [answer])

    for is_repeated, title in ((True, "repeats its prompt"), (False, "repeats nothing")):
        runs: dict[str, Callable[[int], RunTiming]] = {
            f"ours {kind}, {'with' if has_drafts else 'without'} drafts": partial(
                run, runner, has_drafts, is_repeated
            )
            for kind, runner in runner_by_format.items()
            for has_drafts in (False, True)
        }
        case = f"{folder.name}, text, {num_tokens} tokens after {num_tokens}, the answer {title}"
        timings = compare_systems(report, case, runs, size, {})
        for kind in WEIGHT_FORMATS:
            plain, drafted = (
                median_tokens_per_second(timings[f"ours {kind}, {word} drafts"])
                for word in ("without", "with")
            )
            report.add_target(
                f"{name}: {kind}, the answer {title}: with / without drafts",
                drafted / plain,
                min_value=1.5 if is_repeated else 0.97,
            )
