"""Compares two reports of `idefics eval`: paired bootstrap, and the rows that changed, as lines for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from idefics.errors import BadSetting, format_count
from idefics.evaluate.bootstrap import (
    FloatArray,
    Interval,
    RowStatistic,
    check_rows,
    interval_of,
    resample_means,
    resample_statistic,
)
from idefics.evaluate.scoring import METRICS


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The answer of a model to one row.

    Attributes:
        answer: the generated text or the label that was chosen.
        score: of the answer.
        numbers: what a metric that is not a mean of scores is computed from, such as (score, label) for ROC-AUC.
    """

    answer: str
    score: float
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row that the two evaluations answered with different scores."""

    id: str
    first: ScoredRow
    second: ScoredRow


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the second of two evaluations differs from the first.

    Attributes:
        num_rows: rows that both have; all else is computed from them.
        first, second: the metric of each.
        difference: second minus first, with the 95 % interval of the paired bootstrap.
        share_below_zero: of the resamples, those in which the second is worse; near 0: it is better, near 1: worse,
            and near one half: undecided. Resamples with a difference of exactly 0 count one half.
        changed: rows with another score, the largest gain first and the largest loss last.
        only_in_first, only_in_second: ids of rows that the other does not have, in order.
    """

    num_rows: int
    first: float
    second: float
    difference: Interval
    share_below_zero: float
    changed: tuple[ChangedRow, ...]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]


def compare_rows(
    first: Mapping[str, ScoredRow],
    second: Mapping[str, ScoredRow],
    *,
    statistic: RowStatistic | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares two evaluations row by row; each resample draws the same rows for both.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 16, for paired samples.

    Args:
        first, second: the rows of each evaluation by id.
        statistic: computes the metric from an array (N, K) of the rows' `numbers`; None: it is the mean of the
            scores.
        seed: of the random numbers; the same seed gives the same result.

    Raises:
        BadSetting: no id is in both.
    """
    ids = [row_id for row_id in first if row_id in second]
    if not ids:
        raise BadSetting(
            f"no row of the first evaluation ({len(first)}) is among those of the second ({len(second)}); "
            "compare evaluations of the same data"
        )
    before, after = [first[row_id] for row_id in ids], [second[row_id] for row_id in ids]
    if statistic is None:
        rows = _stack([(row.score,) for row in before], [(row.score,) for row in after])
        values = rows.mean(axis=0)[:, 0]
        differences = resample_means(rows[:, 1, 0] - rows[:, 0, 0], seed=seed)
    else:
        rows = _stack([row.numbers for row in before], [row.numbers for row in after])
        values = np.array([statistic(rows[:, 0]), statistic(rows[:, 1])])
        differences = resample_statistic(
            rows, lambda drawn: statistic(drawn[:, 1]) - statistic(drawn[:, 0]), seed=seed
        )
    pairs = zip(ids, before, after, strict=True)
    changed = [ChangedRow(*pair) for pair in pairs if pair[1].score != pair[2].score]
    return Comparison(
        num_rows=len(ids),
        first=float(values[0]),
        second=float(values[1]),
        difference=interval_of(float(values[1] - values[0]), differences),
        share_below_zero=_share_below_zero(differences),
        changed=tuple(sorted(changed, key=lambda row: row.first.score - row.second.score)),
        only_in_first=tuple(row_id for row_id in first if row_id not in second),
        only_in_second=tuple(row_id for row_id in second if row_id not in first),
    )


def _stack(first: Sequence[tuple[float, ...]], second: Sequence[tuple[float, ...]]) -> FloatArray:
    """The numbers of both evaluations: (N, 2, K)."""
    return np.stack([check_rows(first), check_rows(second)], axis=1)


def _share_below_zero(differences: FloatArray) -> float:
    defined = differences[~np.isnan(differences)]
    return float((np.sign(-defined) + 1).mean() / 2) if len(defined) else float("nan")


MAX_CHANGED_ROWS = 20  # that are listed at each end


def read_report(path: Path) -> dict[str, Any]:
    """A report that `idefics eval --out` wrote.

    Raises:
        BadSetting: the file is none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        has_scores = all("name" in row and "score" in row for row in report["rows"])
        if report["metric"] in METRICS and report["rows"] and has_scores:
            return dict(report)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BadSetting(f"{path} is no report of `idefics eval --out`")


def comparison_lines(first_path: Path, second_path: Path) -> Iterator[str]:
    """Yields the lines that say how the second report differs from the first.

    Raises:
        BadSetting: a file is no report, or the two are not about the same rows or have different metrics.
    """
    first, second = read_report(first_path), read_report(second_path)
    if first["metric"] != second["metric"]:
        raise BadSetting(
            f"the reports have the metrics {first['metric']} and {second['metric']}: compare those of one metric"
        )
    changed_names = _rows_about_something_else(first, second)
    compared = compare_rows(
        *(_scored_rows(one, changed_names) for one in (first, second)),
        statistic=METRICS[first["metric"]].statistic,
        seed=first["seed"],
    )
    title, difference = first["metrics"][0]["name"], compared.difference
    noun = "pair" if "group" in first["rows"][0] else "row"
    yield (
        f"{title}: {_percent(compared.first)} -> {_percent(compared.second)}, "
        f"{format_count(compared.num_rows, noun)} that both have"
    )
    yield (
        f"difference: {_percent(difference.value, '+')} (95 % interval {_percent(difference.low, '+')} to "
        f"{_percent(difference.high, '+')}, paired bootstrap)"
    )
    for path, report in ((first_path, first), (second_path, second)):
        if not report.get("is_complete", True):
            yield f"{path} is of a run that was stopped"
    yield f"share of resamples in which the second is worse: {compared.share_below_zero:.3f}"
    before, after = (
        {one: report[one] for one in ("model", "revision", "fingerprint", "seed")} | report["settings"]
        for report in (first, second)
    )
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield f"{name}: {_short(before.get(name, 'none'))} -> {_short(after.get(name, 'none'))}"
    if first["data"]["sha256"] != second["data"]["sha256"]:
        yield "the data differ: rows, questions or right answers"
    if changed_names:
        yield (
            f"left out: {format_count(len(changed_names), 'row')} with another picture or question, such as "
            f"{changed_names[0]}"
        )
    for path, only in ((first_path, compared.only_in_first), (second_path, compared.only_in_second)):
        if only:
            yield f"only in {path}: {format_count(len(only), noun)}, such as {only[0]}"
    yield f"{format_count(len(compared.changed), noun)} changed"
    changed = compared.changed
    hidden = max(0, len(changed) - 2 * MAX_CHANGED_ROWS)
    for index, row in enumerate(changed):
        if hidden and index == MAX_CHANGED_ROWS:
            yield f"... {hidden} more ..."
        if not MAX_CHANGED_ROWS <= index < MAX_CHANGED_ROWS + hidden:
            yield (
                f"{row.id}: {row.first.score:.2f} -> {row.second.score:.2f}   "
                f"{_short(row.first.answer)} -> {_short(row.second.answer)}"
            )


def _rows_about_something_else(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The names of rows that both reports have, but about another picture or with another question."""
    subjects = {row["name"]: _subject(row) for row in first["rows"]}
    return [
        row["name"] for row in second["rows"] if subjects.get(row["name"], _subject(row)) != _subject(row)
    ]


def _subject(row: dict[str, Any]) -> tuple[str, str]:
    """What a row is about: the name of its picture's file, wherever that is, and its question."""
    return PurePath(row.get("path", "")).name, row.get("question", "")


def _scored_rows(report: dict[str, Any], left_out: Sequence[str]) -> dict[str, ScoredRow]:
    """The rows of a report by name, without some; of pairs of rows (Winoground) each pair, by its group."""
    rows: dict[str, ScoredRow] = {}
    names = set(left_out)
    for row in report["rows"]:
        if row["name"] in names:
            continue
        answer, numbers = row.get("answer", ""), tuple(row.get("numbers", ()))
        if "group" not in row:
            rows[row["name"]] = ScoredRow(answer, row["score"], numbers)
        elif numbers:
            known = rows.get(row["group"])
            rows[row["group"]] = ScoredRow(f"{known.answer}; {answer}" if known else answer, numbers[0])
    return rows


def _percent(share: float, sign: str = "") -> str:
    """A share in percent for a line, "-4.2"; "not defined" for NaN."""
    return format(100 * share, f"{sign}.1f") if math.isfinite(share) else "not defined"


def _short(value: object) -> str:
    """A value for a line of a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
