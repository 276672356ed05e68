"""The flags of `idefics eval`: what is evaluated, how, and the reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from idefics.cli.flags import PositionalArguments, flag, flag_group, output_flag

eval_flag = partial(flag, "Evaluation")


@flag_group
class EvalFlags:
    """The flags for what is evaluated, and how."""

    arguments: PositionalArguments
    list: bool = eval_flag("List the suites, with their data and metrics.", default=False)
    data: str = eval_flag(
        "A folder in the layout of the suite's download, a table (.csv, .jsonl, .parquet), or hf:owner/name:split.",
        default="",
        metavar="DATA",
    )
    split: str = eval_flag("The part of the data; else the suite's own.", default="", metavar="NAME")
    image_column: str | None = eval_flag("Column of a table that names the pictures.", metavar="COLUMN")
    shots: int = eval_flag("Few-shot examples of each row, 0 to 32.", default=0)
    selection: Literal["random", "rices"] = eval_flag(
        "How examples are chosen: random, or rices, those with the nearest pictures.",
        default="random",
        metavar="HOW",
    )
    embeddings: Path | None = eval_flag(
        "For rices: vectors in FILE.npy, with an id a line in FILE.ids.txt; else the model's own vision features."
    )
    support: str = eval_flag(
        "Where examples are taken from, as --data; else the suite's training split, or the table itself.",
        default="",
        metavar="DATA",
    )
    prompts: Literal["auto", "base", "instruct", "chat"] = eval_flag(
        "The authors' prompts for base or instruct checkpoints, or the plain question in the chat template (chat); "
        "auto goes by the checkpoint.",
        default="auto",
        metavar="WHICH",
    )
    by: Literal["ranking", "generation"] = eval_flag(
        "How multiple-choice questions are answered: ranking their choices, or generation of text.",
        default="ranking",
        metavar="HOW",
    )
    num_beams: int = eval_flag("Beams of generated answers.", default=1)
    max_new_tokens: int | None = eval_flag("Longest generated answer, in tokens; else the suite's own.")
    question: str | None = eval_flag("The question of all rows of a table that has none.")
    metric: str | None = eval_flag(
        "Another metric than the suite's, or the table's columns', own.", metavar="NAME"
    )
    seed: int = eval_flag("Seed of the drawn examples and of the intervals.", default=0)


@flag_group
class EvalOutputFlags:
    """The flags for the reports."""

    out: Path | None = output_flag("The report as JSON, with all rows.")
    report: Path | None = output_flag(
        "One HTML page with all rows: pictures, answers, right answers and scores; wrong ones can be filtered."
    )
    compare: bool = output_flag("Compare two reports: `idefics eval --compare a.json b.json`.", default=False)
