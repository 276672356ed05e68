"""Decode speed of a model that several adapters share: without one, with one, and with four in a batch.

`python bench/adapters.py [--model smolvlm-256m] [--format bf16 int8 int4] [--rank 16] [--rounds 5]`. The adapters have
random factors for all linear layers of the decoder. The rows of a batch are of one model or of four: with an adapter
each, with the same one, without one where adapters are loaded, and where none is loaded. Prompts too: of a thousand
tokens, the time to the first token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from checkpoints import get_checkpoint
from harness import (
    BenchmarkReport,
    RunTiming,
    median_first_token_seconds,
    median_tokens_per_second,
    run_rounds,
)
from idefics.engine.native.native_model import list_linears
from idefics.models import build_on_meta_device, read_checkpoint
from idefics.weights.adapter_config import AdapterConfig
from idefics.weights.adapter_files import write_adapter
from idefics_runner import IdeficsRunner, random_text_prompts

NUM_ADAPTERS = 4
MAX_SLOWER = 0.15  # target: decoding one row with one adapter in bfloat16 takes at most so much longer


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of rounds and tokens; small for `--quick`."""

    num_rounds: int = 5
    num_tokens: int = 48
    short_context: int = 100
    long_context: int = 1000


QUICK_SIZE = BenchmarkSize(num_rounds=1, num_tokens=8, short_context=12, long_context=24)


def write_random_adapters(folder: Path, checkpoint_folder: Path, rank: int) -> dict[str, Path]:
    """Writes adapters for all linear layers of a checkpoint's decoder, the head left out; returns them by name."""
    module = build_on_meta_device(read_checkpoint(checkpoint_folder))
    layers = set(list_linears(module.decoder_parts()))  # type: ignore[operator]  # a VLM
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer in layers and not name.startswith("lm_head")
    }
    config = AdapterConfig(rank=rank, alpha=rank, target_modules=tuple(sorted(shapes)))
    adapters = {}
    for number in range(NUM_ADAPTERS):
        generator = torch.Generator().manual_seed(number)
        factors = {}
        for name, (outputs, inputs) in shapes.items():
            factors[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.01
            factors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.01
        adapters[f"adapter-{number}"] = folder / str(number)
        write_adapter(folder / str(number), factors, config)
    return adapters


def make_run(
    runner: IdeficsRunner, folder: Path, num_tokens: int, new_tokens: int, adapters: list[str | None]
) -> Callable[[int], RunTiming]:
    """A call that generates a row for each of `adapters`, after new prompts of `num_tokens` tokens."""

    def run(number: int) -> RunTiming:
        prompts = random_text_prompts(folder, num_tokens, len(adapters), number)
        chosen = [
            prompt if name is None else prompt.with_adapter(runner.engine.adapters.find(name))
            for prompt, name in zip(prompts, adapters, strict=True)
        ]
        return runner.run(chosen, new_tokens)

    return run


def measure_format(
    report: BenchmarkReport, folder: Path, weight_format: str, adapters: dict[str, Path], size: BenchmarkSize
) -> None:
    """One row and a batch of four rows in one weight format."""
    base = IdeficsRunner(folder, weight_format)
    shared = IdeficsRunner(folder, weight_format, adapters=adapters)
    first, *_ = names = list(adapters)
    for num_rows in (1, NUM_ADAPTERS):
        rows: dict[str, tuple[IdeficsRunner, list[str | None]]] = {
            "no adapter loaded": (base, [None] * num_rows),
            "loaded, not used": (shared, [None] * num_rows),
            "one adapter": (shared, [first] * num_rows),
        }
        if num_rows > 1:
            rows["four adapters"] = shared, [*names]
        runs = {
            who: make_run(runner, folder, size.short_context, size.num_tokens, chosen)
            for who, (runner, chosen) in rows.items()
        }
        timings = run_rounds(runs, size.num_rounds)
        case = f"{folder.name} {weight_format}, {num_rows} row{'s' * (num_rows > 1)}"
        speeds = {who: median_tokens_per_second(found) for who, found in timings.items()}
        for who, speed in speeds.items():
            note = f"{speeds['no adapter loaded'] / speed - 1:+.1%} time of a token"
            report.add_figure(case, who, speed, "tokens/s", note)
        if num_rows == 1 and weight_format == "bf16":
            slower = speeds["no adapter loaded"] / speeds["one adapter"] - 1
            report.add_target(f"{case}: one adapter, slower by", slower, max_value=MAX_SLOWER)
    prefills = {
        who: make_run(runner, folder, size.long_context, 1, [name])
        for who, (runner, name) in {
            "no adapter loaded": (base, None),
            "loaded, not used": (shared, None),
            "one adapter": (shared, first),
        }.items()
    }
    case = f"{folder.name} {weight_format}, prompt of {size.long_context} tokens"
    for who, found in run_rounds(prefills, size.num_rounds).items():
        report.add_figure(case, who, median_first_token_seconds(found), "s", "first token")


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smolvlm-256m")
    parser.add_argument(
        "--format", nargs="+", choices=["bf16", "int8", "int4"], default=["bf16", "int8", "int4"]
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, few tokens, one round")
    arguments = parser.parse_args()
    report = BenchmarkReport("adapters", is_quick=arguments.quick)
    size = QUICK_SIZE if arguments.quick else BenchmarkSize(num_rounds=arguments.rounds)
    folder = get_checkpoint("demo" if arguments.quick else arguments.model)
    if arguments.quick:
        import idefics

        folder = Path(idefics.__file__).parent / "demo" / "idefics3"
    with TemporaryDirectory() as adapter_folder:
        adapters = write_random_adapters(Path(adapter_folder), folder, arguments.rank)
        for weight_format in arguments.format:
            measure_format(report, folder, weight_format, adapters, size)
    report.print_report()


if __name__ == "__main__":
    main()
