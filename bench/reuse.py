"""What is not computed twice: a second question, few-shot classification, ranking; beside transformers.

`python bench/reuse.py [--case second|shots|ranking] [--model smolvlm-256m]`
second   another question about a picture of 17 tiles that has been asked about before: time to the first token
shots    100 pictures with 8 shots and 20 labels, one tile a picture. transformers' loop scores a few labels, and their
         time is multiplied: the loop has 2,000 equal rounds
ranking  20 labels for one new picture of 17 tiles
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
from checkpoints import checkpoint, unsplit
from harness import Report, Run, first, rounds, seconds
from idefics.prompt import Prompt
from ours import Ours, photo, question
from rivals import Transformers

LABELS = [
    "a red apple", "a green pear", "a dog", "a cat", "a small boat", "a tall tower", "a bridge", "a garden",
    "a kitchen", "a bicycle", "a train", "an aeroplane", "a yellow flower", "a lake", "a mountain", "a street at night",
    "a chair", "a blue vase", "a horse", "a sheet of paper",
]  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """How much of everything; small for a quick look."""

    rounds: int = 3
    pictures: int = 100
    shots: int = 8
    labels: int = 20


QUICK = Size(rounds=1, pictures=3, shots=2, labels=3)


def second(report: Report, name: str, size: Size) -> None:
    """The picture is known, the question is not."""
    ours, folder = Ours(checkpoint(name), "bf16"), checkpoint(name)

    def prompt(number: int, words: str) -> list[Prompt]:
        return [ours.vlm.prompt([idefics.Picture(photo(number)), words])]

    def asked_before(number: int) -> Run:
        ours.run(prompt(number, "What is in the picture?"), 1)
        return ours.run(prompt(number, "Which colours does it have?"), 1)

    runs: dict[str, Callable[[int], Run]] = {"ours": asked_before}
    runs["ours, first question"] = lambda number: ours.run(prompt(1000 + number, "What is it?"), 1)
    for kind, dtype in DTYPES.items():
        rival = Transformers(folder, dtype)
        runs[f"transformers {kind}"] = lambda number, rival=rival: rival.run(  # type: ignore[misc]
            prompt(number, "Which colours does it have?"), 1
        )
    found = rounds(runs, size.rounds)
    for who, mine in found.items():
        report.figure(f"{folder.name}, second question on a picture, first token", who, first(mine), "s")
    ratio = first(found["ours"]) / min(first(found[f"transformers {kind}"]) for kind in DTYPES)
    report.target(f"{folder.name}: second question, ours / transformers", ratio, at_most=0.05)


def shots(report: Report, name: str, size: Size) -> None:
    """Many pictures, the same shots before each and the same labels after."""
    folder = unsplit(checkpoint(name))
    ours, labels = Ours(folder, "bf16"), LABELS[: size.labels]
    given = [idefics.Shot(_picture(n), labels[n % len(labels)]) for n in range(size.shots)]
    taught = ours.vlm.with_shots(given)
    mine = seconds(lambda: taught.classify([_picture(1000 + n) for n in range(size.pictures)], labels))
    prompt, endings = question(taught, labels, _picture(1))
    case = f"{folder.name}, {size.pictures} pictures, {size.shots} shots, {len(labels)} labels"
    report.figure(case, "ours", mine, "s", f"{len(prompt)} tokens of prompt")
    theirs = []
    for kind, dtype in DTYPES.items():
        rival = Transformers(folder, dtype)
        rival.score(prompt, endings[0])
        once = statistics.median(
            seconds(lambda ids=ids: rival.score(prompt, ids))  # type: ignore[misc] # noqa: B023 # called at once
            for ids in endings[1:4]
        )
        theirs.append(once * len(labels) * size.pictures)
        note = f"extrapolated: {once:.2f} s for a label of a picture"
        report.figure(case, f"transformers {kind}, loop over labels", theirs[-1], "s", note)
    report.target(f"{case}: ours / transformers", mine / min(theirs), at_most=0.05)


def ranking(report: Report, name: str, size: Size) -> None:
    """One new picture, many labels."""
    folder, labels = checkpoint(name), LABELS[: size.labels]
    ours = Ours(folder, "bf16")
    ours.vlm.classify(_picture(1), labels)
    mine = statistics.median(
        seconds(lambda n=n: ours.vlm.classify(_picture(10 + n), labels))  # type: ignore[misc]
        for n in range(size.rounds)
    )
    case = f"{folder.name}, {len(labels)} labels for one picture"
    report.figure(case, "ours", mine, "s", "its preprocessing included")
    prompt, endings = question(ours.vlm, labels, _picture(1))
    rival = Transformers(folder, torch.bfloat16)
    rival.score(prompt, endings[0])
    once = seconds(lambda: rival.score(prompt, endings[1]))
    note = f"extrapolated: {once:.2f} s for a label"
    report.figure(case, "transformers bf16, loop over labels", once * len(labels), "s", note)


def _picture(number: int) -> idefics.Picture:
    return idefics.Picture(photo(number))


CASES = {"second": second, "shots": shots, "ranking": ranking}


def main() -> None:
    """Measures what was asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the above; all unless given")
    parser.add_argument("--model", default="smolvlm-256m", help="a short name or a folder")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--pictures", type=int, default=Size.pictures, help="of the case shots")
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint, hardly any rounds")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    demo = Path(idefics.__file__).parent / "demo" / "idefics3"
    report = Report("reuse", quick=given.quick)
    for case in given.case or CASES:
        size = QUICK if given.quick else Size(rounds=given.rounds, pictures=given.pictures)
        CASES[case](report, str(demo) if given.quick else given.model, size)
    report.close()


if __name__ == "__main__":
    main()
