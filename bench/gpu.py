"""Whole models on a GPU, beside transformers: weights are drawn on the device, nothing is read or downloaded.

`python bench/gpu.py --case CASE`, each case within ten minutes on a card of 80 GB or more:
one   Idefics 9b in bfloat16, one row that sees a picture: tokens/s and the share of the card's bandwidth, with every
      kind of weights, and without the recorded step
many  Idefics3-8B in bfloat16, 64 requests with a picture each: seconds until all are answered
`--quick` runs all of it on the demo checkpoints with hardly any rounds, `--device cpu` without a GPU: to see that it
works.
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
from checkpoints import hollow
from harness import Report, Run, bandwidth, first, rounds, seconds, speed
from idefics import models, quant
from idefics.config import EngineConfig, QuantizationConfig, QuantKind
from idefics.engine.decode import TorchDecode
from idefics.engine.engine import Engine
from idefics.models import read_checkpoint
from idefics.pipeline.loading import engine_config, processor_for, stop_ids
from idefics.processing.fetch import Fetcher
from idefics.prompt import Prompt
from idefics.quant.measure import Verdict
from ours import Ours, photo
from rivals import Transformers

DTYPE = torch.bfloat16
KINDS: tuple[QuantKind, ...] = ("int8", "fp8", "int4")


@dataclass(frozen=True)
class Size:
    """How much of everything; small for a quick look."""

    rounds: int = 3
    tokens: int = 256
    requests: int = 64
    answer: int = 64
    kinds: tuple[QuantKind, ...] = KINDS


QUICK = Size(rounds=1, tokens=12, requests=3, answer=5, kinds=("int8",))


class Drawn(Ours):
    """An engine over a model whose weights are drawn on a device."""

    def __init__(self, folder: Path, device: str, kind: QuantKind | None = None) -> None:
        checkpoint, place = read_checkpoint(folder), torch.device(device)
        model = models.build(checkpoint).to(DTYPE).to_empty(device=place)
        drawn(model)
        if kind is not None:
            for name, pack in quant.packs(model, QuantizationConfig(kind=kind)).items():
                pack(model.get_parameter(name).detach())
        quant.tune(model, Verdict())
        processor = processor_for(checkpoint, Fetcher(policy="off"))
        config: EngineConfig = engine_config(place)
        self.engine = Engine(model, config)  # type: ignore[arg-type]  # a VLM by its methods
        self.vlm = idefics.Idefics(processor, self.engine, stop_ids(checkpoint, processor))

    def close(self) -> None:
        """Gives the device's memory back."""
        self.engine.close()
        del self.engine, self.vlm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def drawn(model: nn.Module) -> None:
    """Weights that a forward pass survives: norms of one, no biases, gates half open."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "alpha" in name:
            weight.fill_(0.5)
        elif weight.dim() == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.normal_(std=0.02)


def device_bandwidth(device: str) -> float:
    """Bytes a second that the card moves: the best of copying and of adding up 4 GiB."""
    if device == "cpu":
        return bandwidth()
    block, other = (torch.ones(2**30, dtype=torch.float32, device=device) for _ in range(2))
    ways: dict[int, Callable[[], object]] = {2: lambda: other.copy_(block), 1: block.sum}

    def timed(way: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        return seconds(lambda: (way(), torch.cuda.synchronize()))

    return max(times * block.nbytes / timed(way) for times, way in ways.items() for _ in range(8))


def one(report: Report, name: str, size: Size, device: str) -> None:
    """One row: the weights are read once a token, and nothing else should be felt."""
    folder = hollow(name)
    limit = device_bandwidth(device)
    case = f"{name}, a picture, one row, {size.tokens} tokens"
    report.figure(case, "memory", limit / 1e9, "GB/s")
    mine = Drawn(folder, device)
    prompts = [_look(mine, 0)]
    theirs = Transformers.hollow(folder, DTYPE, device)
    recorded = mine.engine.runner.decode
    plain = TorchDecode(mine.engine.model, mine.engine.cache)
    runs = {
        "ours bf16": partial(_stepping, mine, recorded, prompts, size.tokens),
        "ours bf16, kernel by kernel": partial(_stepping, mine, plain, prompts, size.tokens),
        "transformers bf16": lambda _, theirs=theirs: theirs.run(prompts, size.tokens // 4),
    }
    found = rounds(runs, size.rounds)
    for who, done in found.items():
        note = f"first token {first(done) * 1e3:.0f} ms"
        if who == "ours bf16":
            share = speed(done) * mine.bytes_a_token(len(prompts[0])) / limit
            note = f"{share:.0%} of bandwidth, {note}"
            report.target(f"{name}: share of the card's bandwidth", share, at_least=0.8)
        report.figure(case, who, speed(done), "tokens/s", note)
    ratio = speed(found["ours bf16"]) / speed(found["transformers bf16"])
    report.target(f"{name}: tokens/s, ours / transformers", ratio, at_least=6)
    del theirs, runs
    mine.close()
    for kind in size.kinds:
        few = Drawn(folder, device, kind)
        done = rounds({kind: lambda _, few=few: _fresh(few, prompts, size.tokens)}, size.rounds)[kind]
        share = speed(done) * few.bytes_a_token(len(prompts[0])) / limit
        report.figure(case, f"ours {kind}", speed(done), "tokens/s", f"{share:.0%} of bandwidth")
        few.close()


def many(report: Report, name: str, size: Size, device: str) -> None:
    """Many requests at once, each with a picture of its own, from frames to the last token of the last one."""
    folder = hollow(name)
    mine, theirs = Drawn(folder, device), Transformers.hollow(folder, DTYPE, device)
    prompts = [_look(mine, seed) for seed in range(size.requests)]
    case = f"{name}, {size.requests} requests of {len(prompts[0])} tokens, {size.answer} new ones each"
    side_by_side, count = size.requests, 0
    while not count:
        try:
            theirs.run(prompts[:side_by_side], 2)
            count = side_by_side
        except torch.OutOfMemoryError:
            side_by_side //= 2
    batches = [prompts[start : start + count] for start in range(0, len(prompts), count)]
    runs: dict[str, Callable[[int], float]] = {
        "ours bf16": lambda _: seconds(lambda: _fresh(mine, prompts, size.answer)),
        f"transformers bf16, {count} a batch": lambda _: seconds(
            lambda: [theirs.run(batch, size.answer) for batch in batches]
        ),
    }
    found = {who: statistics.median(spent) for who, spent in rounds(runs, min(size.rounds, 2)).items()}
    for who, spent in found.items():
        report.figure(case, who, spent, "s", f"{size.requests * size.answer / spent:.0f} tokens/s")
    ours_took, theirs_took = found.values()
    report.target(
        f"{name}: time, transformers / ours, {size.requests} requests", theirs_took / ours_took, at_least=3
    )


def _fresh(racer: Drawn, prompts: list[Prompt], tokens: int) -> Run:
    """A run that knows nothing of the ones before."""
    racer.engine.forget()
    return racer.run(prompts, tokens)


def _stepping(racer: Drawn, step: object, prompts: list[Prompt], tokens: int, number: int) -> Run:
    racer.engine.runner.decode = step  # type: ignore[assignment]  # a DecodeStep
    return _fresh(racer, prompts, tokens)


def _look(racer: Drawn, seed: int) -> Prompt:
    """A question about a picture of its own."""
    return racer.vlm.prompt([idefics.Picture(photo(seed)), "What is in the picture?"])


CASES = {"one": (one, "9b", "idefics1"), "many": (many, "idefics3-8b", "idefics3")}


def main() -> None:
    """Measures what was asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    report = Report("gpu")
    demo = Path(idefics.__file__).parent / "demo"
    for case in given.case or CASES:
        measure, name, small = CASES[case]
        measure(
            report, str(demo / small) if given.quick else name, QUICK if given.quick else Size(), given.device
        )
    report.close()


if __name__ == "__main__":
    main()
