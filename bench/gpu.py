"""Whole models on a GPU, compared with transformers: random weights on the device, nothing is read or downloaded.

`python bench/gpu.py --case CASE`, each case within ten minutes on a card of 80 GB or more:
one   Idefics 9b in bfloat16, one row that sees a picture: tokens/s and the share of the card's bandwidth, with every
      weight format, and without CUDA graphs
many  Idefics3-8B in bfloat16, 64 requests with a picture each: seconds until all are answered
`--quick` runs everything on the demo checkpoints with few rounds, `--device cpu` without a GPU, to test the script.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import idefics
from baselines import TransformersBaseline
from checkpoints import get_folder_without_weights
from harness import (
    BenchmarkReport,
    RunTiming,
    measure_memory_bandwidth,
    median_first_token_seconds,
    median_tokens_per_second,
    run_rounds,
    time_call,
)
from idefics import models, quant
from idefics.config import EngineConfig, QuantizationConfig, QuantKind
from idefics.engine.decode import TorchDecode
from idefics.engine.engine import Engine
from idefics.generation.load_settings import LoadSettings, choose_engine_config
from idefics.generation.loading import LoadedModel, collect_stop_ids, create_processor
from idefics.models import read_checkpoint
from idefics.processing.fetch import Fetcher
from idefics.prompt import Prompt
from idefics.quant.autotune import KernelChoice
from idefics_runner import IdeficsRunner, random_photo

DTYPE = torch.bfloat16
QUANT_KINDS: tuple[QuantKind, ...] = ("int8", "fp8", "int4")


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of rounds, tokens and requests; small for `--quick`."""

    num_rounds: int = 3
    num_tokens: int = 256
    num_requests: int = 64
    num_answer_tokens: int = 64
    quant_kinds: tuple[QuantKind, ...] = QUANT_KINDS


QUICK_SIZE = BenchmarkSize(
    num_rounds=1, num_tokens=12, num_requests=3, num_answer_tokens=5, quant_kinds=("int8",)
)


class RandomWeightsRunner(IdeficsRunner):
    """A runner over a model with random weights, created on the device."""

    def __init__(self, folder: Path, device: str, quant_kind: QuantKind | None = None) -> None:
        checkpoint, torch_device = read_checkpoint(folder), torch.device(device)
        model = models.build_on_meta_device(checkpoint).to(DTYPE).to_empty(device=torch_device)
        fill_random_weights(model)
        if quant_kind is not None:
            for name, quantizer in quant.quantizers_by_name(
                model, QuantizationConfig(kind=quant_kind)
            ).items():
                quantizer(model.get_parameter(name).detach())
        quant.apply_kernel_choice(model, KernelChoice())
        processor = create_processor(checkpoint, Fetcher(policy="off"))
        config: EngineConfig = choose_engine_config(torch_device, LoadSettings())
        self.engine = Engine(model, config)  # type: ignore[arg-type]  # a VLM by its methods
        stop_ids = collect_stop_ids(checkpoint, processor)
        self.vlm = idefics.Idefics(LoadedModel(processor, self.engine, stop_ids))

    def close(self) -> None:
        """Releases the device's memory."""
        self.engine.close()
        del self.engine, self.vlm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def fill_random_weights(model: nn.Module) -> None:
    """Random weights with finite activations: norms 1, biases 0, gates 0.5, matrices with deviation 0.02."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "alpha" in name:
            weight.fill_(0.5)
        elif weight.dim() == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.normal_(std=0.02)


def measure_device_bandwidth(device: str) -> float:
    """Memory bandwidth of the device in bytes a second: the best of copying and summing 4 GiB."""
    if device == "cpu":
        return measure_memory_bandwidth()
    block, destination = (torch.ones(2**30, dtype=torch.float32, device=device) for _ in range(2))
    operation_by_num_passes: dict[int, Callable[[], object]] = {
        2: lambda: destination.copy_(block),
        1: block.sum,
    }

    def time_synchronized(way: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        return time_call(lambda: (way(), torch.cuda.synchronize()))

    return max(
        num_passes * block.nbytes / time_synchronized(way)
        for num_passes, way in operation_by_num_passes.items()
        for _ in range(8)
    )


def measure_single_row(report: BenchmarkReport, name: str, size: BenchmarkSize, device: str) -> None:
    """One row: time a token compared with reading the weights once."""
    folder = get_folder_without_weights(name)
    bandwidth = measure_device_bandwidth(device)
    case = f"{name}, a picture, one row, {size.num_tokens} tokens"
    report.add_figure(case, "memory", bandwidth / 1e9, "GB/s")
    runner = RandomWeightsRunner(folder, device)
    prompts = [_image_prompt(runner, 0)]
    baseline = TransformersBaseline.from_config(folder, DTYPE, device)
    graph_decode = runner.engine.model_runner.decode_step
    eager_decode = TorchDecode(runner.engine.model, runner.engine.kv_cache)
    runs = {
        "ours bf16": partial(_run_with_decode_step, runner, graph_decode, prompts, size.num_tokens),
        "ours bf16, kernel by kernel": partial(
            _run_with_decode_step, runner, eager_decode, prompts, size.num_tokens
        ),
        "transformers bf16": lambda _, theirs=baseline: theirs.run(prompts, size.num_tokens // 4),
    }
    timings_by_system = run_rounds(runs, size.num_rounds)
    for who, timings in timings_by_system.items():
        note = f"first token {median_first_token_seconds(timings) * 1e3:.0f} ms"
        if who == "ours bf16":
            share = median_tokens_per_second(timings) * runner.bytes_per_token(len(prompts[0])) / bandwidth
            note = f"{share:.0%} of bandwidth, {note}"
            report.add_target(f"{name}: share of the card's bandwidth", share, min_value=0.8)
        report.add_figure(case, who, median_tokens_per_second(timings), "tokens/s", note)
    ratio = median_tokens_per_second(timings_by_system["ours bf16"]) / median_tokens_per_second(
        timings_by_system["transformers bf16"]
    )
    report.add_target(f"{name}: tokens/s, ours / transformers", ratio, min_value=6)
    del baseline, runs
    runner.close()
    for kind in size.quant_kinds:
        quantized_runner = RandomWeightsRunner(folder, device, kind)
        timings = run_rounds(
            {kind: lambda _, few=quantized_runner: _run_with_empty_caches(few, prompts, size.num_tokens)},
            size.num_rounds,
        )[kind]
        share = (
            median_tokens_per_second(timings) * quantized_runner.bytes_per_token(len(prompts[0])) / bandwidth
        )
        report.add_figure(
            case, f"ours {kind}", median_tokens_per_second(timings), "tokens/s", f"{share:.0%} of bandwidth"
        )
        quantized_runner.close()


def measure_many_requests(report: BenchmarkReport, name: str, size: BenchmarkSize, device: str) -> None:
    """Many requests at once, each with a picture of its own, from frames to the last token of the last one."""
    folder = get_folder_without_weights(name)
    runner, baseline = (
        RandomWeightsRunner(folder, device),
        TransformersBaseline.from_config(folder, DTYPE, device),
    )
    prompts = [_image_prompt(runner, seed) for seed in range(size.num_requests)]
    case = f"{name}, {size.num_requests} requests of {len(prompts[0])} tokens, {size.num_answer_tokens} new ones each"
    trial_batch_size, batch_size = size.num_requests, 0
    while not batch_size:
        try:
            baseline.run(prompts[:trial_batch_size], 2)
            batch_size = trial_batch_size
        except torch.OutOfMemoryError:
            trial_batch_size //= 2
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    runs: dict[str, Callable[[int], float]] = {
        "ours bf16": lambda _: time_call(
            lambda: _run_with_empty_caches(runner, prompts, size.num_answer_tokens)
        ),
        f"transformers bf16, {batch_size} a batch": lambda _: time_call(
            lambda: [baseline.run(batch, size.num_answer_tokens) for batch in batches]
        ),
    }
    seconds_by_system = {
        who: statistics.median(seconds) for who, seconds in run_rounds(runs, min(size.num_rounds, 2)).items()
    }
    for who, seconds in seconds_by_system.items():
        report.add_figure(
            case, who, seconds, "s", f"{size.num_requests * size.num_answer_tokens / seconds:.0f} tokens/s"
        )
    idefics_seconds, transformers_seconds = seconds_by_system.values()
    report.add_target(
        f"{name}: time, transformers / ours, {size.num_requests} requests",
        transformers_seconds / idefics_seconds,
        min_value=3,
    )


def _run_with_empty_caches(runner: RandomWeightsRunner, prompts: list[Prompt], num_tokens: int) -> RunTiming:
    """A run with empty prefix and encoder caches."""
    runner.engine.clear_caches()
    return runner.run(prompts, num_tokens)


def _run_with_decode_step(
    runner: RandomWeightsRunner, decode_step: object, prompts: list[Prompt], num_tokens: int, round_index: int
) -> RunTiming:
    runner.engine.model_runner.decode_step = decode_step  # type: ignore[assignment]  # a DecodeStep
    return _run_with_empty_caches(runner, prompts, num_tokens)


def _image_prompt(runner: RandomWeightsRunner, seed: int) -> Prompt:
    """A prompt with a question about one random picture."""
    return runner.vlm.prompt([idefics.Picture(random_photo(seed)), "What is in the picture?"])


CASES = {
    "one": (measure_single_row, "9b", "idefics1"),
    "many": (measure_many_requests, "idefics3-8b", "idefics3"),
}


def main() -> None:
    """Reads the command line, measures the chosen cases and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    report = BenchmarkReport("gpu")
    demo_folder = Path(idefics.__file__).parent / "demo"
    for case in arguments.case or CASES:
        measure, name, demo_name = CASES[case]
        measure(
            report,
            str(demo_folder / demo_name) if arguments.quick else name,
            QUICK_SIZE if arguments.quick else BenchmarkSize(),
            arguments.device,
        )
    report.print_report()


if __name__ == "__main__":
    main()
