"""Time to the first token and tokens a second, beside transformers and llama.cpp on the same weights.

`python bench/generate.py [--case CASE] [--model NAME]`, each case within ten minutes on two cores:
decode   text, one row, after 100 tokens: every kind of weights (SmolVLM-256M, -500M)
context  the same after 1,100 tokens
batch    8 and 32 rows
first    from the frames of a picture of 17 tiles to the first token
beside   Idefics 1 with 1 and with 4 pictures, at 9b's width
wide     Idefics2-8b and Idefics3-8B, text, at their width
`--quick` runs all of it on the demo checkpoints with hardly any rounds: to see that it works.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import idefics
from baselines import LlamaCppBaseline, TransformersBaseline, write_gguf
from checkpoints import get_checkpoint
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
# ours: (llama.cpp's kind, times its speed, share of the bandwidth)
LLAMA_CPP_TARGET_BY_FORMAT = {
    "int8": ("q8_0", 1.5, 0.85),
    "int4": ("q4_0", 1.5, 0.80),
    "bf16": ("f16", 1.2, 0.0),
}


@dataclass(frozen=True)
class BenchmarkSize:
    """How much of everything; small for a quick look."""

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
    """Rounds of all, and their figures; `bytes_per_token_by_system` has the bytes that a token of some of them reads."""
    measured_bandwidths: list[
        float
    ] = []  # in each round anew: what the neighbours of a machine leave over moves
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


def measure_decode(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Every kind of weights against every kind of the rivals, one row of text."""
    folder, num_threads = get_checkpoint(name), torch.get_num_threads()
    weight_formats = ["bf16", "int8", "int4"]
    runner_by_format = {kind: IdeficsRunner(folder, kind) for kind in weight_formats}
    prompts = _text_prompts(folder, size.short_context, 1)
    runs = {
        f"ours {kind}": _make_run(runner, prompts, size.num_tokens)
        for kind, runner in runner_by_format.items()
    }
    for kind in ("f16", "q8_0", "q4_0") if name in SMOLVLM_NAMES else ():
        runs[f"llama.cpp {kind}"] = _make_run(
            LlamaCppBaseline(write_gguf(folder, kind), num_threads), prompts, size.num_tokens
        )
    for kind, dtype in DTYPES.items():
        runs[f"transformers {kind}"] = _make_run(
            TransformersBaseline(folder, dtype), prompts, size.num_tokens // 4
        )
    static_cache_baseline = TransformersBaseline(folder, torch.bfloat16, cache_implementation="static")
    runs["transformers bf16, static cache"] = _make_run(static_cache_baseline, prompts, size.num_tokens // 4)
    bytes_per_token_by_system = {
        f"ours {kind}": runner.bytes_per_token(size.short_context)
        for kind, runner in runner_by_format.items()
    }
    timings_by_system = compare_systems(
        report, f"{folder.name}, text, context {size.short_context}", runs, size, bytes_per_token_by_system
    )
    best_transformers_speed = max(
        median_tokens_per_second(idefics_speed)
        for who, idefics_speed in timings_by_system.items()
        if who.startswith("transformers")
    )
    for kind in weight_formats if name in SMOLVLM_NAMES else ():
        idefics_speed = median_tokens_per_second(timings_by_system[f"ours {kind}"])
        quant_type, min_speedup, min_bandwidth_share = LLAMA_CPP_TARGET_BY_FORMAT[kind]
        report.add_target(
            f"{name}: {kind} / llama.cpp {quant_type}",
            idefics_speed / median_tokens_per_second(timings_by_system[f"llama.cpp {quant_type}"]),
            min_value=min_speedup,
        )
        if min_bandwidth_share:
            report.add_target(
                f"{name}: {kind}, share of bandwidth",
                report.bandwidth_share_by_system[f"ours {kind}"],
                min_value=min_bandwidth_share,
            )
        if kind != "int4":
            report.add_target(
                f"{name}: {kind} / transformers at its best",
                idefics_speed / best_transformers_speed,
                min_value=2 if kind == "bf16" else 6,
            )


def measure_long_context(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """How much of its speed is left after a long prompt."""
    folder, num_threads = get_checkpoint(name), torch.get_num_threads()
    weight_formats = ["bf16", "int8", "int4"]
    runs: dict[str, Callable[[int], RunTiming]] = {}
    bytes_per_token_by_system: dict[str, int] = {}
    runner_by_system = {f"ours {kind}": IdeficsRunner(folder, kind) for kind in weight_formats}
    for num_context_tokens in (size.short_context, size.long_context):
        prompts = _text_prompts(folder, num_context_tokens, 1)
        for who, runner in runner_by_system.items():
            runs[f"{who}, after {num_context_tokens}"] = _make_run(runner, prompts, size.num_tokens)
            bytes_per_token_by_system[f"{who}, after {num_context_tokens}"] = runner.bytes_per_token(
                num_context_tokens
            )
        if name in SMOLVLM_NAMES:
            llama_cpp = LlamaCppBaseline(write_gguf(folder, "q8_0"), num_threads)
            runs[f"llama.cpp q8_0, after {num_context_tokens}"] = _make_run(
                llama_cpp, prompts, size.num_tokens
            )
    timings_by_system = compare_systems(
        report, f"{folder.name}, text, contexts", runs, size, bytes_per_token_by_system
    )
    for who in runner_by_system:
        short_context_speed, long_context_speed = (
            median_tokens_per_second(timings_by_system[f"{who}, after {num_context_tokens}"])
            for num_context_tokens in (size.short_context, size.long_context)
        )
        report.add_target(
            f"{name}: {who}, after {size.long_context} / after {size.short_context}",
            long_context_speed / short_context_speed,
            min_value=0.85,
        )


def measure_batch_sizes(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Many rows at once: tokens of all of them together."""
    folder = get_checkpoint(name)
    runner_by_system = {
        f"ours {kind}": IdeficsRunner(folder, kind, batch_rows=max(size.batch_sizes))
        for kind in ("int8", "bf16")
    }
    runner_by_system |= {
        f"transformers {kind}": TransformersBaseline(folder, dtype) for kind, dtype in DTYPES.items()
    }
    for batch_size in size.batch_sizes:
        prompts = _text_prompts(folder, size.short_context, batch_size)
        num_tokens_by_system = {
            who: size.num_tokens // (1 if who.startswith("ours") else 4) for who in runner_by_system
        }
        runs = {
            who: _make_run(runner, prompts, num_tokens_by_system[who])
            for who, runner in runner_by_system.items()
        }
        timings_by_system = compare_systems(report, f"{folder.name}, text, {batch_size} rows", runs, size, {})
        best_transformers_speed = max(
            median_tokens_per_second(mine)
            for who, mine in timings_by_system.items()
            if who.startswith("transformers")
        )
        if batch_size == 8:
            report.add_target(
                f"{name}: int8 / transformers, {batch_size} rows",
                median_tokens_per_second(timings_by_system["ours int8"]) / best_transformers_speed,
                min_value=4,
            )


def measure_first_token(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """A new picture each time, its frames at hand."""
    folder = get_checkpoint(name)
    runner_by_system = {f"ours {kind}": IdeficsRunner(folder, kind) for kind in ("fp32", "int8")}
    prompts = _image_prompts(runner_by_system["ours fp32"])
    runs = {who: _make_run(runner, prompts, 1) for who, runner in runner_by_system.items()}
    runs["transformers fp32"] = _make_run(TransformersBaseline(folder, torch.float32), prompts, 1)
    timings_by_system = run_rounds(runs, size.num_rounds)
    (prompt,) = prompts(0)
    num_frames = sum(len(tiles.frames) for tiles in prompt.pictures)
    for who, timings in timings_by_system.items():
        report.add_figure(
            f"{folder.name}, a picture of {num_frames} frames, {len(prompt)} tokens",
            who,
            median_first_token_seconds(timings),
            "s",
        )
    transformers_seconds = median_first_token_seconds(timings_by_system["transformers fp32"])
    report.add_target(
        f"{name}: int8 / transformers fp32, first token",
        median_first_token_seconds(timings_by_system["ours int8"]) / transformers_seconds,
        max_value=0.4,
    )
    report.add_target(
        f"{name}: fp32 / transformers fp32, first token",
        median_first_token_seconds(timings_by_system["ours fp32"]) / transformers_seconds,
        max_value=0.75,
    )


def measure_cross_attention(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Pictures beside the text: time a token must not grow with them."""
    folder = get_checkpoint(name)
    runner, baseline = IdeficsRunner(folder, "bf16"), TransformersBaseline(folder, torch.bfloat16)
    for num_images, max_ratio in ((1, 0.6), (4, 0.35)):
        prompts = _image_prompts(runner, num_images)
        runs = {
            "ours bf16": _make_run(runner, prompts, size.num_tokens // 3),
            "transformers bf16": _make_run(baseline, prompts, size.num_tokens // 6),
        }
        bytes_per_token_by_system = {"ours bf16": runner.bytes_per_token(size.short_context)}
        timings_by_system = compare_systems(
            report, f"{folder.name}, pictures: {num_images}", runs, size, bytes_per_token_by_system
        )
        ratio = median_tokens_per_second(timings_by_system["transformers bf16"]) / median_tokens_per_second(
            timings_by_system["ours bf16"]
        )
        report.add_target(
            f"{name}: time a token, ours / transformers, pictures: {num_images}", ratio, max_value=max_ratio
        )


def measure_wide_layers(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Families of wide layers: text, one row."""
    folder = get_checkpoint(name)
    runner_by_system = {f"ours {kind}": IdeficsRunner(folder, kind) for kind in ("bf16", "int8", "int4")}
    prompts = _text_prompts(folder, size.short_context, 1)
    runs = {who: _make_run(runner, prompts, size.num_tokens // 2) for who, runner in runner_by_system.items()}
    runs["transformers bf16"] = _make_run(
        TransformersBaseline(folder, torch.bfloat16), prompts, size.num_tokens // 4
    )
    bytes_per_token_by_system = {
        who: runner.bytes_per_token(size.short_context) for who, runner in runner_by_system.items()
    }
    compare_systems(
        report, f"{folder.name}, text, context {size.short_context}", runs, size, bytes_per_token_by_system
    )


def _make_run(
    runner: IdeficsRunner | LlamaCppBaseline | TransformersBaseline, prompts: PromptsByRound, num_tokens: int
) -> Callable[[int], RunTiming]:
    return lambda number: runner.run(prompts(number), num_tokens)


def _text_prompts(folder: Path, num_tokens: int, num_prompts: int) -> PromptsByRound:
    """New words for each round."""
    return lambda number: random_text_prompts(folder, num_tokens, num_prompts, number)


def _image_prompts(runner: IdeficsRunner, num_images: int = 1) -> PromptsByRound:
    """A prompt of new pictures for each round."""

    def prompts(number: int) -> list[Prompt]:
        photos = [idefics.Picture(random_photo(100 * number + picture)) for picture in range(num_images)]
        return [runner.vlm.prompt([*photos, "What is in the pictures?"])]

    return prompts


CASES: dict[str, tuple[Callable[[BenchmarkReport, str, BenchmarkSize], None], tuple[str, ...]]] = {
    "decode": (measure_decode, SMOLVLM_NAMES),
    "context": (measure_long_context, SMOLVLM_NAMES),
    "batch": (measure_batch_sizes, ("smolvlm-256m",)),
    "first": (measure_first_token, ("smolvlm-256m",)),
    "beside": (measure_cross_attention, ("9b",)),
    "wide": (measure_wide_layers, ("idefics2-8b", "idefics3-8b")),
}


def main() -> None:
    """Measures what was asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument(
        "--model", action="append", help="a short name or a folder; those of the case unless given"
    )
    parser.add_argument("--rounds", type=int, default=BenchmarkSize.num_rounds)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoints, hardly any rounds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    report = BenchmarkReport("generate", is_quick=arguments.quick)
    demo_folder = Path(idefics.__file__).parent / "demo"
    for case in arguments.case or CASES:
        measure, names = CASES[case]
        if arguments.quick:
            names = (str(demo_folder / ("idefics1" if case == "beside" else "idefics3")),)
        for name in arguments.model or names:
            measure(
                report, name, QUICK_SIZE if arguments.quick else BenchmarkSize(num_rounds=arguments.rounds)
            )
    report.print_report()


if __name__ == "__main__":
    main()
