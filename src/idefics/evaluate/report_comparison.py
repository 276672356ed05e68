"""Compares two reports of `idefics eval`: paired bootstrap, and the rows that changed, as lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idefics.errors import BadSetting
from idefics.evaluate.comparison import ScoredRow, compare_rows
from idefics.evaluate.scoring import METRICS

MAX_CHANGED_ROWS = 20  # that are listed at each end


def read_report(path: Path) -> dict[str, Any]:
    """A report that `idefics eval --out` wrote.

    Raises:
        BadSetting: the file is none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["metric"] in METRICS and report["rows"]:
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
    metric = METRICS[first["metric"]]
    compared = compare_rows(
        _scored_rows(first), _scored_rows(second), statistic=metric.statistic, seed=first["seed"]
    )
    name, difference = first["metrics"][0]["name"], compared.difference
    yield f"{name}: {100 * compared.first:.1f} -> {100 * compared.second:.1f}, {compared.num_rows} rows that both have"
    yield (
        f"difference: {100 * difference.value:+.1f} (95 % interval {100 * difference.low:+.1f} to "
        f"{100 * difference.high:+.1f}, paired bootstrap)"
    )
    yield f"share of resamples in which the second is worse: {compared.share_below_zero:.3f}"
    for one in ("model", "revision", "fingerprint", "settings", "seed"):
        if first[one] != second[one]:
            yield f"{one}: {_short(first[one])} -> {_short(second[one])}"
    if first["data"]["sha256"] != second["data"]["sha256"]:
        yield "the data differ: rows, questions or right answers"
    for path, only in ((first_path, compared.only_in_first), (second_path, compared.only_in_second)):
        if only:
            yield f"only in {path}: {len(only)} rows, such as {only[0]}"
    yield f"{len(compared.changed)} rows changed"
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


def _scored_rows(report: dict[str, Any]) -> dict[str, ScoredRow]:
    """The rows of a report by name."""
    return {
        row["name"]: ScoredRow(row.get("answer", ""), row["score"], tuple(row.get("numbers", ())))
        for row in report["rows"]
    }


def _short(value: object) -> str:
    """A value for a line of a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
