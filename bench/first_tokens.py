"""The cases of `generate.py` that measure the time to the first token: of a picture, and of a short text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from baselines import LlamaCppBaseline, TransformersBaseline, write_gguf
from checkpoints import get_checkpoint
from comparison import DTYPES, SMOLVLM_NAMES, BenchmarkSize, image_prompts, make_run, text_prompts
from harness import BenchmarkReport, RunTiming, median_first_token_seconds, run_rounds
from idefics_runner import IdeficsRunner


def measure_first_token(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Time to the first token, from preprocessed frames of a new picture in each round."""
    folder = get_checkpoint(name)
    runner_by_system = {
        f"ours {kind}": IdeficsRunner(folder, kind) for kind in ("fp32", "bf16", "int8", "int4")
    }
    prompts = image_prompts(runner_by_system["ours fp32"])
    runs = {who: make_run(runner, prompts, 1) for who, runner in runner_by_system.items()}
    for kind, dtype in DTYPES.items():
        runs[f"transformers {kind}"] = make_run(TransformersBaseline(folder, dtype), prompts, 1)
    (prompt,) = prompts(0)
    num_frames = sum(len(tiles.frames) for tiles in prompt.pictures)
    seconds = report_first_tokens(
        report,
        f"{folder.name}, a picture of {num_frames} frames, {len(prompt)} tokens",
        runs,
        size.num_rounds,
    )
    best_transformers = min(seconds[f"transformers {kind}"] for kind in DTYPES)
    for kind, max_ratio in (("bf16", 0.7), ("int8", 0.3)):
        title = "the default" if kind == "bf16" else kind
        report.add_target(
            f"{name}: {title} / transformers at its best, first token",
            seconds[f"ours {kind}"] / best_transformers,
            max_value=max_ratio,
        )
    report.add_target(
        f"{name}: fp32 / transformers fp32, first token",
        seconds["ours fp32"] / seconds["transformers fp32"],
        max_value=0.75,
    )


def measure_text_prompt(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Time to the first token of a short text, of which each round has another."""
    folder, num_threads = get_checkpoint(name), torch.get_num_threads()
    prompts = text_prompts(folder, size.short_context, 1)
    runs = {
        f"ours {kind}": make_run(IdeficsRunner(folder, kind), prompts, 1) for kind in ("bf16", "int8", "int4")
    }
    for kind in ("f16", "q8_0", "q4_0") if name in SMOLVLM_NAMES else ():
        baseline = LlamaCppBaseline(write_gguf(folder, kind), num_threads)
        runs[f"llama.cpp {kind}"] = make_run(baseline, prompts, 1)
    for kind, dtype in DTYPES.items():
        runs[f"transformers {kind}"] = make_run(TransformersBaseline(folder, dtype), prompts, 1)
    seconds = report_first_tokens(
        report, f"{folder.name}, text of {size.short_context} tokens", runs, size.num_rounds
    )
    if name in SMOLVLM_NAMES:
        best_llama_cpp = min(time for who, time in seconds.items() if who.startswith("llama.cpp"))
        for kind in ("bf16", "int8"):
            report.add_target(
                f"{name}: {kind} / llama.cpp at its best, first token of a text",
                seconds[f"ours {kind}"] / best_llama_cpp,
                max_value=0.8,
            )


def report_first_tokens(
    report: BenchmarkReport, case: str, runs: dict[str, Callable[[int], RunTiming]], num_rounds: int
) -> dict[str, float]:
    """Runs rounds of all systems; reports and returns their median seconds to the first token."""
    seconds = {
        who: median_first_token_seconds(timings) for who, timings in run_rounds(runs, num_rounds).items()
    }
    for who, time in seconds.items():
        report.add_figure(case, who, 1e3 * time, "ms")
    return seconds
