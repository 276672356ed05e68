"""What the cases of `generate.py` share: sizes, prompts, and rounds of several systems with their figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import idefics
from baselines import LlamaCppBaseline, TransformersBaseline
from harness import (
    BenchmarkReport,
    RunTiming,
    measure_memory_bandwidth,
    median_first_token_seconds,
    median_tokens_per_second,
    run_rounds,
)
from idefics.prompt import Prompt
from idefics_runner import IdeficsRunner, random_photo, random_text_prompts

PromptsByRound = Callable[[int], list[Prompt]]
SHORT_CONTEXT, LONG_CONTEXT = 100, 1100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMOLVLM_NAMES = ("smolvlm-256m", "smolvlm-500m")


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of rounds, tokens and rows; small for `--quick`."""

    num_rounds: int = 5
    num_tokens: int = 48
    short_context: int = SHORT_CONTEXT
    long_context: int = LONG_CONTEXT
    batch_sizes: tuple[int, ...] = (8, 32)


QUICK_SIZE = BenchmarkSize(num_rounds=1, num_tokens=16, short_context=12, long_context=24, batch_sizes=(2,))


def compare_systems(
    report: BenchmarkReport,
    case: str,
    runs: dict[str, Callable[[int], RunTiming]],
    size: BenchmarkSize,
    bytes_per_token_by_system: dict[str, int],
) -> dict[str, list[RunTiming]]:
    """Runs rounds of all systems and reports their figures.

    Args:
        report: takes the figures.
        case: title of the figures.
        runs: system -> call that takes the round's number.
        size: how many rounds.
        bytes_per_token_by_system: bytes that one decode step reads, for the share of the memory bandwidth.
    """
    measured_bandwidths: list[float] = []  # measured in each round: on a shared machine it varies
    timings_by_system = run_rounds(
        runs, size.num_rounds, before_round=lambda: measured_bandwidths.append(measure_memory_bandwidth())
    )
    bandwidth = statistics.median(measured_bandwidths)
    report.add_figure(case, "memory, all threads", bandwidth / 1e9, "GB/s")
    for who, timings in timings_by_system.items():
        note = f"first token {median_first_token_seconds(timings) * 1e3:.0f} ms"
        if who in bytes_per_token_by_system:
            share = median_tokens_per_second(timings) * bytes_per_token_by_system[who] / bandwidth
            note = f"{share:.0%} of bandwidth ({bytes_per_token_by_system[who] / 1e6:.0f} MB a token), {note}"
        report.add_figure(case, who, median_tokens_per_second(timings), "tokens/s", note)
    report.bandwidth_share_by_system = {
        who: median_tokens_per_second(timings_by_system[who]) * bytes_per_token / bandwidth
        for who, bytes_per_token in bytes_per_token_by_system.items()
    }
    return timings_by_system


def make_run(
    runner: IdeficsRunner | LlamaCppBaseline | TransformersBaseline, prompts: PromptsByRound, num_tokens: int
) -> Callable[[int], RunTiming]:
    """A call that runs a round's prompts for `num_tokens` tokens each."""
    return lambda number: runner.run(prompts(number), num_tokens)


def text_prompts(folder: Path, num_tokens: int, num_prompts: int) -> PromptsByRound:
    """Random text prompts, new ones in each round."""
    return lambda number: random_text_prompts(folder, num_tokens, num_prompts, number)


def image_prompts(runner: IdeficsRunner, num_images: int = 1) -> PromptsByRound:
    """One prompt with `num_images` random pictures, new ones in each round."""

    def prompts(number: int) -> list[Prompt]:
        photos = [idefics.Picture(random_photo(100 * number + picture)) for picture in range(num_images)]
        return [runner.vlm.prompt([*photos, "What is in the pictures?"])]

    return prompts
