"""Time to the first token and tokens a second, compared with transformers and llama.cpp on the same weights.

`python bench/generate.py [--case CASE] [--model NAME]`, each case within ten minutes on two cores:
decode           text, one row, after 100 tokens: every weight format (SmolVLM-256M, -500M)
context          the same after 1,100 tokens
batch            8 and 32 rows
busy             int4 and llama.cpp's q4_0, on a calm machine and while another process takes one core
first            from the frames of a picture of 17 tiles to the first token
prompt           from a text of 100 tokens to the first token
repeats          text, one row: an answer that repeats its prompt, and one that does not, with and without drafts
cross-attention  Idefics 1 with 1 and with 4 pictures, at 9b's width
wide             Idefics2-8b and Idefics3-8B, text, at their width
`--quick` runs everything on the demo checkpoints with few rounds, to test the script.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import idefics
from baselines import LlamaCppBaseline, TransformersBaseline, write_gguf
from checkpoints import get_checkpoint
from comparison import (
    DTYPES,
    QUICK_SIZE,
    SMOLVLM_NAMES,
    BenchmarkSize,
    compare_systems,
    image_prompts,
    make_run,
    text_prompts,
)
from first_tokens import measure_first_token, measure_text_prompt
from harness import MAX_BUSY_RATIO, BenchmarkReport, RunTiming, busy_core, median_tokens_per_second
from idefics_runner import IdeficsRunner
from repeats import measure_repeats

# weight format -> (llama.cpp's format, target relative to its speed, target share of the bandwidth)
LLAMA_CPP_TARGET_BY_FORMAT = {
    "int8": ("q8_0", 1.5, 0.85),
    "int4": ("q4_0", 1.5, 0.80),
    "bf16": ("f16", 1.2, 0.0),
}


def measure_decode(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """One row of text: every weight format, compared with those of llama.cpp and transformers."""
    folder, num_threads = get_checkpoint(name), torch.get_num_threads()
    weight_formats = ["bf16", "int8", "int4"]
    runner_by_format = {kind: IdeficsRunner(folder, kind) for kind in weight_formats}
    prompts = text_prompts(folder, size.short_context, 1)
    runs = {
        f"ours {kind}": make_run(runner, prompts, size.num_tokens)
        for kind, runner in runner_by_format.items()
    }
    for kind in ("f16", "q8_0", "q4_0") if name in SMOLVLM_NAMES else ():
        runs[f"llama.cpp {kind}"] = make_run(
            LlamaCppBaseline(write_gguf(folder, kind), num_threads), prompts, size.num_tokens
        )
    for kind, dtype in DTYPES.items():
        runs[f"transformers {kind}"] = make_run(
            TransformersBaseline(folder, dtype), prompts, size.num_tokens // 4
        )
    static_cache_baseline = TransformersBaseline(folder, torch.bfloat16, cache_implementation="static")
    runs["transformers bf16, static cache"] = make_run(static_cache_baseline, prompts, size.num_tokens // 4)
    bytes_per_token_by_system = {
        f"ours {kind}": runner.bytes_per_token(size.short_context)
        for kind, runner in runner_by_format.items()
    }
    timings_by_system = compare_systems(
        report, f"{folder.name}, text, context {size.short_context}", runs, size, bytes_per_token_by_system
    )
    best_transformers_speed = max(
        median_tokens_per_second(timings)
        for who, timings in timings_by_system.items()
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
    """Decode speed after a short and after a long prompt."""
    folder, num_threads = get_checkpoint(name), torch.get_num_threads()
    weight_formats = ["bf16", "int8", "int4"]
    runs: dict[str, Callable[[int], RunTiming]] = {}
    bytes_per_token_by_system: dict[str, int] = {}
    runner_by_system = {f"ours {kind}": IdeficsRunner(folder, kind) for kind in weight_formats}
    for num_context_tokens in (size.short_context, size.long_context):
        prompts = text_prompts(folder, num_context_tokens, 1)
        for who, runner in runner_by_system.items():
            runs[f"{who}, after {num_context_tokens}"] = make_run(runner, prompts, size.num_tokens)
            bytes_per_token_by_system[f"{who}, after {num_context_tokens}"] = runner.bytes_per_token(
                num_context_tokens
            )
        if name in SMOLVLM_NAMES:
            llama_cpp = LlamaCppBaseline(write_gguf(folder, "q8_0"), num_threads)
            runs[f"llama.cpp q8_0, after {num_context_tokens}"] = make_run(
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
    """Several rows at once: tokens a second of all together."""
    folder = get_checkpoint(name)
    runner_by_system = {
        f"ours {kind}": IdeficsRunner(folder, kind, batch_rows=max(size.batch_sizes))
        for kind in ("int8", "bf16")
    }
    runner_by_system |= {
        f"transformers {kind}": TransformersBaseline(folder, dtype) for kind, dtype in DTYPES.items()
    }
    for batch_size in size.batch_sizes:
        prompts = text_prompts(folder, size.short_context, batch_size)
        num_tokens_by_system = {
            who: size.num_tokens // (1 if who.startswith("ours") else 4) for who in runner_by_system
        }
        runs = {
            who: make_run(runner, prompts, num_tokens_by_system[who])
            for who, runner in runner_by_system.items()
        }
        timings_by_system = compare_systems(report, f"{folder.name}, text, {batch_size} rows", runs, size, {})
        best_transformers_speed = max(
            median_tokens_per_second(timings)
            for who, timings in timings_by_system.items()
            if who.startswith("transformers")
        )
        if batch_size == 8:
            report.add_target(
                f"{name}: int8 / transformers, {batch_size} rows",
                median_tokens_per_second(timings_by_system["ours int8"]) / best_transformers_speed,
                min_value=4,
            )


def measure_busy_decode(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Decode speed of int4 relative to llama.cpp: on a calm machine, and while another process takes one core."""
    folder = get_checkpoint(name)
    prompts = text_prompts(folder, size.short_context, 1)
    runs = {"ours int4": make_run(IdeficsRunner(folder, "int4"), prompts, size.num_tokens)}
    if name in SMOLVLM_NAMES:
        llama_cpp = LlamaCppBaseline(write_gguf(folder, "q4_0"), torch.get_num_threads())
        runs["llama.cpp q4_0"] = make_run(llama_cpp, prompts, size.num_tokens)

    def compare(title: str) -> dict[str, float]:
        timings_by_system = compare_systems(report, f"{folder.name}, text, {title}", runs, size, {})
        return {who: median_tokens_per_second(timings) for who, timings in timings_by_system.items()}

    calm = compare("calm")
    with busy_core():
        busy = compare("one core taken")
    if name in SMOLVLM_NAMES:
        report.add_target(
            f"{name}: int4, time relative to llama.cpp q4_0: one core taken / calm",
            (calm["ours int4"] / calm["llama.cpp q4_0"]) / (busy["ours int4"] / busy["llama.cpp q4_0"]),
            max_value=MAX_BUSY_RATIO,
        )


def measure_cross_attention(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """A cross-attention model: time a token with one picture and with four."""
    folder = get_checkpoint(name)
    runner, baseline = IdeficsRunner(folder, "bf16"), TransformersBaseline(folder, torch.bfloat16)
    for num_images, max_ratio in ((1, 0.6), (4, 0.35)):
        prompts = image_prompts(runner, num_images)
        runs = {
            "ours bf16": make_run(runner, prompts, size.num_tokens // 3),
            "transformers bf16": make_run(baseline, prompts, size.num_tokens // 6),
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
    """Wide models: text, one row."""
    folder = get_checkpoint(name)
    runner_by_system = {f"ours {kind}": IdeficsRunner(folder, kind) for kind in ("bf16", "int8", "int4")}
    prompts = text_prompts(folder, size.short_context, 1)
    runs = {who: make_run(runner, prompts, size.num_tokens // 2) for who, runner in runner_by_system.items()}
    runs["transformers bf16"] = make_run(
        TransformersBaseline(folder, torch.bfloat16), prompts, size.num_tokens // 4
    )
    bytes_per_token_by_system = {
        who: runner.bytes_per_token(size.short_context) for who, runner in runner_by_system.items()
    }
    compare_systems(
        report, f"{folder.name}, text, context {size.short_context}", runs, size, bytes_per_token_by_system
    )


CASES: dict[str, tuple[Callable[[BenchmarkReport, str, BenchmarkSize], None], tuple[str, ...]]] = {
    "decode": (measure_decode, SMOLVLM_NAMES),
    "context": (measure_long_context, SMOLVLM_NAMES),
    "batch": (measure_batch_sizes, ("smolvlm-256m",)),
    "busy": (measure_busy_decode, ("smolvlm-256m",)),
    "first": (measure_first_token, SMOLVLM_NAMES),
    "prompt": (measure_text_prompt, SMOLVLM_NAMES),
    "repeats": (measure_repeats, ("smolvlm-256m",)),
    "cross-attention": (measure_cross_attention, ("9b",)),
    "wide": (measure_wide_layers, ("idefics2-8b", "idefics3-8b")),
}


def main() -> None:
    """Reads the command line, measures the chosen cases and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument(
        "--model", action="append", help="a short name or a folder; those of the case unless given"
    )
    parser.add_argument("--rounds", type=int, default=BenchmarkSize.num_rounds)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoints, one round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    report = BenchmarkReport("generate", is_quick=arguments.quick)
    demo_folder = Path(idefics.__file__).parent / "demo"
    for case in arguments.case or CASES:
        measure, names = CASES[case]
        if arguments.quick:
            names = (str(demo_folder / ("idefics1" if case == "cross-attention" else "idefics3")),)
        for name in arguments.model or names:
            measure(
                report, name, QUICK_SIZE if arguments.quick else BenchmarkSize(num_rounds=arguments.rounds)
            )
    report.print_report()


if __name__ == "__main__":
    main()
