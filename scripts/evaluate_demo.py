"""Measures demo checkpoints on held-out scenes: `python scripts/evaluate_demo.py demo demo-idefics1`.

The scenes show combinations that training never shows, drawn by a seed that training never uses; the models are asked
through the public calls, greedily. Needs Debian's fonts-noto-color-emoji. `--write-golden` instead writes the answers
about the bundled pictures that the tests hold the checkpoints to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import idefics
from picturebook.labels import LABELS
from picturebook.raws import RAW
from recipe.evaluation import FORMS, Mark, examine
from recipe.golden import GOLDEN, write_golden

SEED = 20261  # training's are 0 and 1


@dataclass(frozen=True)
class Row:
    """A row of the table: the tests that it joins, and the share that shall be right.

    A detail is a part of the row above.
    """

    title: str
    tests: tuple[str, ...]
    goal: float | None = None
    detail: bool = False


def details(pattern: str, names: Sequence[str]) -> tuple[Row, ...]:
    """A row for each of some tests."""
    return tuple(Row(f"· {name}", (pattern.format(name),), detail=True) for name in names)


def joined(title: str, pattern: str, names: Sequence[str], goal: float | None = None) -> tuple[Row, ...]:
    """A row for some tests together, and one for each."""
    apart = details(pattern, names)
    return Row(title, tuple(test for row in apart for test in row.tests), goal), *apart


ROWS = (
    *joined("what is there", "question/{}", ("what", "at"), 0.95),
    Row("what colour", ("question/color",), 0.95),
    Row("how many", ("question/count",), 0.95),
    Row("where", ("question/where",), 0.95),
    *joined("yes or no", "question/{}", ("exists", "relation"), 0.95),
    Row("what is left of, above, …", ("question/neighbour",)),
    Row("large or small", ("question/size",)),
    Row("the ground", ("question/ground",)),
    Row("day or night", ("question/time",)),
    *joined("classify: the label written", "classify/{}/written", tuple(LABELS), 0.95),
    *joined("classify: the labels ranked", "classify/{}/ranked", tuple(LABELS), 0.95),
    Row("caption: every attribute", ("caption",), 0.90),
    Row("caption: all things", ("caption/things",)),
    Row("“This is an image of” continued", ("complete",)),
    *joined("shots: their form", "shots/{}/form", tuple(FORMS), 0.90),
    *joined("shots: form and content", "shots/{}/exact", tuple(FORMS)),
    *details("shots/{}/exact", ("free",)),
    Row("a story that fits", ("story",)),
    Row("chat: every answer", ("chat",)),
    Row("chat: follow-up questions", ("chat/follow-up",), 0.90),
    *joined("raw prompts", "raw/{}", tuple(RAW)),
)


def shares(row: Row, results: Mapping[str, Sequence[Mark]]) -> dict[str, tuple[int, int]]:
    """For each checkpoint how many were right, of how many."""
    found = {}
    for name, marks in results.items():
        judged = [mark.right for mark in marks if mark.test in row.tests]
        found[name] = (sum(judged), len(judged))
    return found


def table(results: Mapping[str, Sequence[Mark]], with_details: bool) -> str:
    """Markdown: a row for each task, a column for each checkpoint, in percent."""
    lines = [f"| % right | asked | goal | {' | '.join(results)} |", f"|-|-:|-:|{'-:|' * len(results)}"]
    for row in ROWS:
        found = shares(row, results)
        if (row.detail and not with_details) or not any(asked for _, asked in found.values()):
            continue
        cells = [f"{100 * right / asked:.1f}" if asked else "–" for right, asked in found.values()]
        asked = max(asked for _, asked in found.values())
        goal = f"{100 * row.goal:.0f}" if row.goal else ""
        lines.append(f"| {row.title} | {asked} | {goal} | {' | '.join(cells)} |")
    means = [f"{mean(results, name):.2f}" for name in results]
    return "\n".join([*lines, f"| mean of the rows | | | {' | '.join(means)} |"])


def mean(results: Mapping[str, Sequence[Mark]], name: str) -> float:
    """Of the rows' percentages, details left aside."""
    found = (shares(row, results)[name] for row in ROWS if not row.detail)
    percents = [100 * right / asked for right, asked in found if asked]
    return sum(percents) / len(percents)


def as_json(results: Mapping[str, Sequence[Mark]], arguments: argparse.Namespace) -> str:
    """The same for machines."""
    rows = [
        {"row": row.title, "tests": row.tests, "goal": row.goal, "right_of": shares(row, results)}
        for row in ROWS
    ]
    settings = {"scenes": arguments.scenes, "seed": arguments.seed, "side": arguments.side}
    return json.dumps({**settings, "rows": rows}, ensure_ascii=False)


def wrong(results: Mapping[str, Sequence[Mark]], most: int) -> str:
    """Some wrong answers of each test, for people who want to know why."""
    lines = []
    for name, marks in results.items():
        for test in dict.fromkeys(mark.test for mark in marks):
            missed = [mark for mark in marks if mark.test == test and not mark.right]
            lines += [
                f"{name}  {test}  {mark.asked}\n    wanted {mark.wanted!r}\n    said   {mark.said!r}"
                for mark in missed[:most]
            ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["demo", "demo-idefics1"], help="names or folders")
    parser.add_argument("--scenes", type=int, default=200, help="for each kind of question (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of the pictures in pixels (%(default)s)")
    parser.add_argument(
        "--quantize", action="append", default=[], metavar="BITS", help="also in few bits: int8, int4, nf4"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--details", action="store_true", help="tell apart what a row of the table joins")
    parser.add_argument(
        "--wrong", type=int, default=0, metavar="K", help="print K wrong answers of each kind too"
    )
    parser.add_argument("--write-golden", action="store_true", help=f"write {GOLDEN} instead")
    arguments = parser.parse_args()
    results: dict[str, list[Mark]] = {}
    for model, bits in product(arguments.models, [None, *arguments.quantize]):
        vlm = idefics.load(model, device="cpu", dtype="float32", quantize=bits)
        if arguments.write_golden:
            print(write_golden(vlm, Path(model).name))
            continue

        name = f"{model} {bits}" if bits else model

        def report(kind: str, name: str = name) -> None:
            if sys.stderr.isatty():
                print(f"\r{name}: {kind:<20}", end="", file=sys.stderr, flush=True)

        results[name] = list(examine(vlm, arguments.scenes, arguments.seed, arguments.side, report))
        report("done\n")
    if results:
        print(as_json(results, arguments) if arguments.json else table(results, arguments.details))
        if arguments.wrong:
            print(wrong(results, arguments.wrong))


if __name__ == "__main__":
    main()
