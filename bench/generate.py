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
from checkpoints import checkpoint
from harness import Report, Run, bandwidth, first, rounds, speed
from idefics.prompt import Prompt
from ours import Ours, photo, words
from rivals import LlamaCpp, Transformers, gguf

Prompts = Callable[[int], list[Prompt]]
SHORT, LONG = 100, 1100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMOL = ("smolvlm-256m", "smolvlm-500m")
# ours: (llama.cpp's kind, times its speed, share of the bandwidth)
AGAINST = {"int8": ("q8_0", 1.5, 0.85), "int4": ("q4_0", 1.5, 0.80), "bf16": ("f16", 1.2, 0.0)}


@dataclass(frozen=True)
class Size:
    """How much of everything; small for a quick look."""

    rounds: int = 5
    tokens: int = 48
    short: int = SHORT
    long: int = LONG
    rows: tuple[int, ...] = (8, 32)


QUICK = Size(rounds=1, tokens=16, short=12, long=24, rows=(2,))


def race(
    report: Report, case: str, runs: dict[str, Callable[[int], Run]], size: Size, limits: dict[str, int]
) -> dict[str, list[Run]]:
    """Rounds of all, and their figures; `limits` has the bytes that a token of some of them reads."""
    reads: list[float] = []  # in each round anew: what the neighbours of a machine leave over moves
    found = rounds(runs, size.rounds, before=lambda: reads.append(bandwidth()))
    limit = statistics.median(reads)
    report.figure(case, "memory, all threads", limit / 1e9, "GB/s")
    for who, mine in found.items():
        note = f"first token {first(mine) * 1e3:.0f} ms"
        if who in limits:
            share = speed(mine) * limits[who] / limit
            note = f"{share:.0%} of bandwidth ({limits[who] / 1e6:.0f} MB a token), {note}"
        report.figure(case, who, speed(mine), "tokens/s", note)
    report.shares = {who: speed(found[who]) * read / limit for who, read in limits.items()}
    return found


def decode(report: Report, name: str, size: Size) -> None:
    """Every kind of weights against every kind of the rivals, one row of text."""
    folder, threads = checkpoint(name), torch.get_num_threads()
    kinds = ["bf16", "int8", "int4"]
    ours = {kind: Ours(folder, kind) for kind in kinds}
    prompts = _texts(folder, size.short, 1)
    runs = {f"ours {kind}": _run(one, prompts, size.tokens) for kind, one in ours.items()}
    for kind in ("f16", "q8_0", "q4_0") if name in SMOL else ():
        runs[f"llama.cpp {kind}"] = _run(LlamaCpp(gguf(folder, kind), threads), prompts, size.tokens)
    for kind, dtype in DTYPES.items():
        runs[f"transformers {kind}"] = _run(Transformers(folder, dtype), prompts, size.tokens // 4)
    static = Transformers(folder, torch.bfloat16, cache="static")
    runs["transformers bf16, static cache"] = _run(static, prompts, size.tokens // 4)
    limits = {f"ours {kind}": one.bytes_a_token(size.short) for kind, one in ours.items()}
    found = race(report, f"{folder.name}, text, context {size.short}", runs, size, limits)
    best = max(speed(mine) for who, mine in found.items() if who.startswith("transformers"))
    for kind in kinds if name in SMOL else ():
        mine = speed(found[f"ours {kind}"])
        rival, times, share = AGAINST[kind]
        report.target(
            f"{name}: {kind} / llama.cpp {rival}", mine / speed(found[f"llama.cpp {rival}"]), at_least=times
        )
        if share:
            report.target(
                f"{name}: {kind}, share of bandwidth", report.shares[f"ours {kind}"], at_least=share
            )
        if kind != "int4":
            report.target(
                f"{name}: {kind} / transformers at its best",
                mine / best,
                at_least=2 if kind == "bf16" else 6,
            )


def context(report: Report, name: str, size: Size) -> None:
    """How much of its speed is left after a long prompt."""
    folder, threads = checkpoint(name), torch.get_num_threads()
    kinds = ["bf16", "int8", "int4"]
    runs: dict[str, Callable[[int], Run]] = {}
    limits: dict[str, int] = {}
    racers = {f"ours {kind}": Ours(folder, kind) for kind in kinds}
    for count in (size.short, size.long):
        prompts = _texts(folder, count, 1)
        for who, one in racers.items():
            runs[f"{who}, after {count}"] = _run(one, prompts, size.tokens)
            limits[f"{who}, after {count}"] = one.bytes_a_token(count)
        if name in SMOL:
            rival = LlamaCpp(gguf(folder, "q8_0"), threads)
            runs[f"llama.cpp q8_0, after {count}"] = _run(rival, prompts, size.tokens)
    found = race(report, f"{folder.name}, text, contexts", runs, size, limits)
    for who in racers:
        short, long = (speed(found[f"{who}, after {count}"]) for count in (size.short, size.long))
        report.target(f"{name}: {who}, after {size.long} / after {size.short}", long / short, at_least=0.85)


def batch(report: Report, name: str, size: Size) -> None:
    """Many rows at once: tokens of all of them together."""
    folder = checkpoint(name)
    racers = {f"ours {kind}": Ours(folder, kind, rows=max(size.rows)) for kind in ("int8", "bf16")}
    racers |= {f"transformers {kind}": Transformers(folder, dtype) for kind, dtype in DTYPES.items()}
    for rows in size.rows:
        prompts = _texts(folder, size.short, rows)
        tokens = {who: size.tokens // (1 if who.startswith("ours") else 4) for who in racers}
        runs = {who: _run(one, prompts, tokens[who]) for who, one in racers.items()}
        found = race(report, f"{folder.name}, text, {rows} rows", runs, size, {})
        best = max(speed(mine) for who, mine in found.items() if who.startswith("transformers"))
        if rows == 8:
            report.target(
                f"{name}: int8 / transformers, {rows} rows", speed(found["ours int8"]) / best, at_least=4
            )


def first_token(report: Report, name: str, size: Size) -> None:
    """A new picture each time, its frames at hand."""
    folder = checkpoint(name)
    racers = {f"ours {kind}": Ours(folder, kind) for kind in ("fp32", "int8")}
    prompts = _looks(racers["ours fp32"])
    runs = {who: _run(one, prompts, 1) for who, one in racers.items()}
    runs["transformers fp32"] = _run(Transformers(folder, torch.float32), prompts, 1)
    found = rounds(runs, size.rounds)
    (prompt,) = prompts(0)
    frames = sum(len(tiles.frames) for tiles in prompt.pictures)
    for who, mine in found.items():
        report.figure(
            f"{folder.name}, a picture of {frames} frames, {len(prompt)} tokens", who, first(mine), "s"
        )
    theirs = first(found["transformers fp32"])
    report.target(
        f"{name}: int8 / transformers fp32, first token", first(found["ours int8"]) / theirs, at_most=0.4
    )
    report.target(
        f"{name}: fp32 / transformers fp32, first token", first(found["ours fp32"]) / theirs, at_most=0.75
    )


def beside(report: Report, name: str, size: Size) -> None:
    """Pictures beside the text: time a token must not grow with them."""
    folder = checkpoint(name)
    mine, theirs = Ours(folder, "bf16"), Transformers(folder, torch.bfloat16)
    for pictures, most in ((1, 0.6), (4, 0.35)):
        prompts = _looks(mine, pictures)
        runs = {
            "ours bf16": _run(mine, prompts, size.tokens // 3),
            "transformers bf16": _run(theirs, prompts, size.tokens // 6),
        }
        limits = {"ours bf16": mine.bytes_a_token(size.short)}
        found = race(report, f"{folder.name}, pictures: {pictures}", runs, size, limits)
        ratio = speed(found["transformers bf16"]) / speed(found["ours bf16"])
        report.target(f"{name}: time a token, ours / transformers, pictures: {pictures}", ratio, at_most=most)


def wide(report: Report, name: str, size: Size) -> None:
    """Families of wide layers: text, one row."""
    folder = checkpoint(name)
    ours = {f"ours {kind}": Ours(folder, kind) for kind in ("bf16", "int8", "int4")}
    prompts = _texts(folder, size.short, 1)
    runs = {who: _run(one, prompts, size.tokens // 2) for who, one in ours.items()}
    runs["transformers bf16"] = _run(Transformers(folder, torch.bfloat16), prompts, size.tokens // 4)
    limits = {who: one.bytes_a_token(size.short) for who, one in ours.items()}
    race(report, f"{folder.name}, text, context {size.short}", runs, size, limits)


def _run(racer: Ours | LlamaCpp | Transformers, prompts: Prompts, tokens: int) -> Callable[[int], Run]:
    return lambda number: racer.run(prompts(number), tokens)


def _texts(folder: Path, count: int, rows: int) -> Prompts:
    """New words for each round."""
    return lambda number: words(folder, count, rows, number)


def _looks(one: Ours, pictures: int = 1) -> Prompts:
    """A prompt of new pictures for each round."""

    def prompts(number: int) -> list[Prompt]:
        photos = [idefics.Picture(photo(100 * number + picture)) for picture in range(pictures)]
        return [one.vlm.prompt([*photos, "What is in the pictures?"])]

    return prompts


CASES: dict[str, tuple[Callable[[Report, str, Size], None], tuple[str, ...]]] = {
    "decode": (decode, SMOL),
    "context": (context, SMOL),
    "batch": (batch, ("smolvlm-256m",)),
    "first": (first_token, ("smolvlm-256m",)),
    "beside": (beside, ("9b",)),
    "wide": (wide, ("idefics2-8b", "idefics3-8b")),
}


def main() -> None:
    """Measures what was asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument(
        "--model", action="append", help="a short name or a folder; those of the case unless given"
    )
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoints, hardly any rounds")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    report = Report("generate", quick=given.quick)
    demo = Path(idefics.__file__).parent / "demo"
    for case in given.case or CASES:
        measure, names = CASES[case]
        if given.quick:
            names = (str(demo / ("idefics1" if case == "beside" else "idefics3")),)
        for name in given.model or names:
            measure(report, name, QUICK if given.quick else Size(rounds=given.rounds))
    report.close()


if __name__ == "__main__":
    main()
