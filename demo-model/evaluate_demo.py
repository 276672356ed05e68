"""Measures demo checkpoints on held-out scenes: `python demo-model/evaluate_demo.py demo demo-idefics1`.

The scenes show combinations that are not in the training data, with a seed that training never uses.
The models answer greedily through the public API. Needs Debian's fonts-noto-color-emoji. `--write-golden` writes
tests/golden/*.json instead: the answers about the bundled pictures, which tests compare.
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
from picturebook.labels import WEIGHT_AND_SAMPLER_BY_SORT
from picturebook.raw_prompts import WEIGHT_AND_SAMPLER_BY_NAME
from recipe.evaluation import FORM_CHECK_BY_NAME, GradedAnswer, evaluate
from recipe.golden import GOLDEN_FOLDER, write_golden

SEED = 20261  # training's are 0 and 1


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        title: first column.
        test_names: the tests whose answers are counted together.
        min_share: the goal: the share that has to be right; None: no goal.
        is_detail: whether the row is a part of the row above.
    """

    title: str
    test_names: tuple[str, ...]
    min_share: float | None = None
    is_detail: bool = False


def detail_rows(pattern: str, names: Sequence[str]) -> tuple[TableRow, ...]:
    """One detail row for each name; `pattern.format(name)` is the test."""
    return tuple(TableRow(f"· {name}", (pattern.format(name),), is_detail=True) for name in names)


def rows_for_group(
    title: str, pattern: str, names: Sequence[str], goal: float | None = None
) -> tuple[TableRow, ...]:
    """One row for all the tests together, then a detail row for each."""
    detail_rows_of_group = detail_rows(pattern, names)
    return TableRow(
        title, tuple(test for row in detail_rows_of_group for test in row.test_names), goal
    ), *detail_rows_of_group


TABLE_ROWS = (
    *rows_for_group("what is there", "question/{}", ("what", "at"), 0.95),
    TableRow("what colour", ("question/color",), 0.95),
    TableRow("how many", ("question/count",), 0.95),
    TableRow("where", ("question/where",), 0.95),
    *rows_for_group("yes or no", "question/{}", ("exists", "relation"), 0.95),
    TableRow("what is left of, above, …", ("question/neighbour",)),
    TableRow("large or small", ("question/size",)),
    TableRow("the ground", ("question/ground",)),
    TableRow("day or night", ("question/time",)),
    *rows_for_group(
        "classify: the label written", "classify/{}/written", tuple(WEIGHT_AND_SAMPLER_BY_SORT), 0.95
    ),
    *rows_for_group(
        "classify: the labels ranked", "classify/{}/ranked", tuple(WEIGHT_AND_SAMPLER_BY_SORT), 0.95
    ),
    TableRow("caption: every attribute", ("caption",), 0.90),
    TableRow("caption: all things", ("caption/things",)),
    TableRow("“This is an image of” continued", ("complete",)),
    *rows_for_group("shots: their form", "shots/{}/form", tuple(FORM_CHECK_BY_NAME), 0.90),
    *rows_for_group("shots: form and content", "shots/{}/exact", tuple(FORM_CHECK_BY_NAME)),
    *detail_rows("shots/{}/exact", ("free",)),
    TableRow("a story that fits", ("story",)),
    TableRow("chat: every answer", ("chat",)),
    TableRow("chat: follow-up questions", ("chat/follow-up",), 0.90),
    *rows_for_group("raw prompts", "raw/{}", tuple(WEIGHT_AND_SAMPLER_BY_NAME)),
)


def count_correct(row: TableRow, results: Mapping[str, Sequence[GradedAnswer]]) -> dict[str, tuple[int, int]]:
    """Checkpoint -> (number of right answers, number of answers) of a row."""
    counts_by_checkpoint = {}
    for name, marks in results.items():
        correct_flags = [mark.is_correct for mark in marks if mark.test in row.test_names]
        counts_by_checkpoint[name] = (sum(correct_flags), len(correct_flags))
    return counts_by_checkpoint


def format_table(results: Mapping[str, Sequence[GradedAnswer]], with_details: bool) -> str:
    """A Markdown table in percent: a row for each task, a column for each checkpoint."""
    lines = [f"| % right | asked | goal | {' | '.join(results)} |", f"|-|-:|-:|{'-:|' * len(results)}"]
    for row in TABLE_ROWS:
        counts_by_checkpoint = count_correct(row, results)
        if (row.is_detail and not with_details) or not any(
            num_answers for _, num_answers in counts_by_checkpoint.values()
        ):
            continue
        cells = [
            f"{100 * right / num_answers:.1f}" if num_answers else "–"
            for right, num_answers in counts_by_checkpoint.values()
        ]
        num_answers = max(num_answers for _, num_answers in counts_by_checkpoint.values())
        goal = f"{100 * row.min_share:.0f}" if row.min_share else ""
        lines.append(f"| {row.title} | {num_answers} | {goal} | {' | '.join(cells)} |")
    means = [f"{mean_percent(results, name):.2f}" for name in results]
    return "\n".join([*lines, f"| mean of the rows | | | {' | '.join(means)} |"])


def mean_percent(results: Mapping[str, Sequence[GradedAnswer]], name: str) -> float:
    """The mean of a checkpoint's percentages over all rows but the details."""
    counts = (count_correct(row, results)[name] for row in TABLE_ROWS if not row.is_detail)
    percents = [100 * right / asked for right, asked in counts if asked]
    return sum(percents) / len(percents)


def format_json(results: Mapping[str, Sequence[GradedAnswer]], arguments: argparse.Namespace) -> str:
    """The results as JSON: settings, and the counts of each row."""
    rows = [
        {
            "row": row.title,
            "tests": row.test_names,
            "goal": row.min_share,
            "right_of": count_correct(row, results),
        }
        for row in TABLE_ROWS
    ]
    settings = {"scenes": arguments.scenes, "seed": arguments.seed, "side": arguments.side}
    return json.dumps({**settings, "rows": rows}, ensure_ascii=False)


def format_wrong_answers(results: Mapping[str, Sequence[GradedAnswer]], max_per_test: int) -> str:
    """Up to `max_per_test` wrong answers of each test, with question and expected answer."""
    lines = []
    for name, marks in results.items():
        for test in dict.fromkeys(mark.test for mark in marks):
            wrong_answers = [mark for mark in marks if mark.test == test and not mark.is_correct]
            lines += [
                f"{name}  {test}  {mark.question}\n    wanted {mark.expected!r}\n    said   {mark.answer!r}"
                for mark in wrong_answers[:max_per_test]
            ]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, evaluates, prints."""
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
    parser.add_argument("--write-golden", action="store_true", help=f"write {GOLDEN_FOLDER} instead")
    arguments = parser.parse_args()
    results: dict[str, list[GradedAnswer]] = {}
    for model, quant_kind in product(arguments.models, [None, *arguments.quantize]):
        vlm = idefics.load(model, device="cpu", dtype="float32", quantize=quant_kind)
        if arguments.write_golden:
            print(write_golden(vlm, Path(model).name))
            continue

        name = f"{model} {quant_kind}" if quant_kind else model

        def report(kind: str, name: str = name) -> None:
            if sys.stderr.isatty():
                print(f"\r{name}: {kind:<20}", end="", file=sys.stderr, flush=True)

        results[name] = list(evaluate(vlm, arguments.scenes, arguments.seed, arguments.side, report))
        report("done\n")
    if results:
        print(format_json(results, arguments) if arguments.json else format_table(results, arguments.details))
        if arguments.wrong:
            print(format_wrong_answers(results, arguments.wrong))


if __name__ == "__main__":
    main()
