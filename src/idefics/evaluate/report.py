"""The report of an evaluation as JSON: figures with intervals, published ones, all rows, and how to do it again."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from idefics import __version__
from idefics.batch.output_file import replace_file
from idefics.batch.records import OutputRecord, RowScore, RunSummary
from idefics.batch.report import write_report
from idefics.catalog import CATALOG
from idefics.evaluate.evaluation import Evaluation
from idefics.evaluate.scores import EvaluatedRow, Figure, Scores

PACKAGES = ("torch", "numpy", "pillow", "tokenizers")


def report_json(
    evaluation: Evaluation,
    rows: Sequence[EvaluatedRow],
    answers: Sequence[dict[str, Any]],
    scores: Scores,
    *,
    unscored: Sequence[EvaluatedRow],
    is_complete: bool,
    command: str,
    started: datetime,
    seconds: float,
) -> dict[str, Any]:
    """The report of an evaluation.

    Args:
        evaluation: the suite, the checkpoint and the settings.
        rows, answers: the rows, and the fields of their answers in the ledger.
        scores: of the rows.
        unscored: rows without a right answer.
        is_complete: whether the run came to its end, so that no row is missing.
        command: the command line.
        started: when the run began.
        seconds: duration of the run.
    """
    suite, settings, model = evaluation.suite, evaluation.settings, evaluation.run_settings
    return {
        "suite": suite.name,
        "metrics": [figure_json(one) for one in scores.figures],
        "num_rows": len(rows),
        "num_failed": sum(1 for row in rows if row.error),
        "num_unscored": len(unscored),
        "is_complete": is_complete,
        "notes": list(scores.notes),
        "model": model.model,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "data": {
            "location": settings.data or "installed",
            "split": settings.split or suite.split,
            "sha256": hash_rows(rows),
        },
        "settings": evaluation.describe_settings(),
        "published": [asdict(one) for one in published_figures(suite.name)],
        "example": evaluation.example_prompt(),
        "seed": settings.seed,
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "tokens": sum(answer.get("tokens") or 0 for answer in answers),
        "versions": {"idefics": __version__} | {name: _version(name) for name in PACKAGES},
        "machine": describe_machine(),
        "metric": suite.metric,
        "rows": [row_json(row, scores, index) for index, row in enumerate(rows)],
        "unscored": [{"name": row.name, "error": row.error} for row in unscored],
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure as JSON; a number that is not defined, as ROC-AUC of rows with one label, is null."""
    interval = figure.interval
    value = {
        "name": figure.name,
        "value": _finite(interval.value),
        "low": _finite(interval.low),
        "high": _finite(interval.high),
    }
    return value | ({"note": figure.note} if figure.note else {})


def _finite(number: float) -> float | None:
    """The number for JSON, which has no NaN."""
    return round(number, 4) if math.isfinite(number) else None


def row_json(row: EvaluatedRow, scores: Scores, index: int) -> dict[str, Any]:
    """A row of the report as JSON; what is empty is left out."""
    value: dict[str, Any] = {
        "name": row.name,
        "id": row.id,
        "path": row.path,
        "group": row.group,
        "question": row.question,
        "answer": row.answer,
        "uncut_answer": row.uncut_answer if row.uncut_answer != row.answer else "",
        "references": list(row.references),
        "label_scores": [round(one, 6) for one in row.label_scores],
        "numbers": list(scores.numbers[index]) if scores.numbers else [],
        "error": row.error,
    }
    value = {
        name: one
        for name, one in value.items()
        if one not in ("", []) or (name == "answer" and not row.error)
    }
    return value | {"score": round(scores.rows[index], 6)}


def hash_rows(rows: Sequence[EvaluatedRow]) -> str:
    """SHA-256 (hex) of the names, questions and right answers of the rows, which tells data sets apart."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.name, row.question, row.references, row.labels]).encode())
    return digest.hexdigest()


def describe_machine() -> str:
    """The processor and the memory of this machine, in words."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    parts = [platform.system(), platform.machine(), f"{torch.get_num_threads()} threads", *gpus]
    return ", ".join(parts)


def write_json_report(path: Path, report: dict[str, Any]) -> None:
    """Writes a report; an older file is replaced once the new one is complete.

    Raises:
        OutputError: it cannot be written.
    """

    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "backslashreplace"))

    replace_file(path, write)


def write_html_report(
    path: Path,
    evaluation: Evaluation,
    rows: Sequence[EvaluatedRow],
    answers: Sequence[dict[str, Any]],
    scores: Scores,
    summary: RunSummary,
    thumbnails: Callable[[OutputRecord], bytes | None],
) -> None:
    """Writes the report as one HTML page: the rows with pictures, answers, right answers and scores.

    Args:
        path: of the page.
        evaluation, rows, answers, scores: as in `report_json`.
        summary: what the page says about the run.
        thumbnails: see `batch.report.write_report`.

    Raises:
        OutputError: the page cannot be written.
    """
    run_settings = evaluation.run_settings
    score_by_id = {row.name: RowScore(scores.rows[index], row.references) for index, row in enumerate(rows)}
    records = (
        OutputRecord(
            id=row.name,
            path=row.path,
            task=evaluation.suite.name,
            prompt=row.question,
            text=None if row.error else row.answer,
            finish=answer.get("finish"),
            tokens=answer.get("tokens"),
            model=run_settings.model,
            revision=run_settings.revision,
            settings={},
            seconds=answer.get("seconds"),
            error_type=answer.get("error_type"),
            error=row.error or None,
        )
        for row, answer in zip(rows, answers, strict=True)
    )
    write_report(path, records, summary, thumbnails, lambda record: score_by_id[record.id])


def figure_text(figure: Figure) -> str:
    """A figure for people: "61.5 (95 % interval 55.0 to 68.0)"; "not defined", as ROC-AUC of rows with one label."""
    interval = figure.interval
    if not math.isfinite(interval.value):
        return "not defined"
    return f"{interval.value:.1f} (95 % interval {interval.low:.1f} to {interval.high:.1f})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


PUBLISHED_FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigure:
    """A published figure.

    Attributes:
        suite: a key of `SUITES`.
        model: the checkpoint's short name.
        shots: number of few-shot examples.
        value: as it was published.
        metric: what the source calls it.
        split: the part of the data; "" if the source does not say.
        source: where it was published.
        settings: what is known and not known of how it was computed.
    """

    suite: str
    model: str
    shots: int
    value: float
    metric: str
    split: str
    source: str
    settings: str


@cache
def published_figures(suite: str) -> tuple[PublishedFigure, ...]:
    """The published figures of a suite, by model and shots."""
    content = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    figures = []
    for one in content["figures"]:
        if one["suite"] != suite:
            continue
        known = content["sources"][one["source"]]
        note = one.pop("note", "")
        figures.append(PublishedFigure(**one, settings=f"{note}; {known}" if note else known))
    return tuple(sorted(figures, key=lambda figure: (figure.model, figure.shots)))


def figures_of_model(figures: Sequence[PublishedFigure], model: str) -> list[PublishedFigure]:
    """The figures of one checkpoint.

    Args:
        figures: from `published_figures`.
        model: its short name, its id on the hub, or a folder with the name of its repository.
    """
    name = Path(model).name.lower()
    names = {name}
    for entry in CATALOG:
        hub_name = entry.hub_id.rpartition("/")[2].lower()
        if name in (*entry.short_names, hub_name):
            names |= {*entry.short_names, hub_name}
    return [one for one in figures if one.model in names]
