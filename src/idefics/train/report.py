"""The report of a training: one page of HTML with its curves, its settings, and answers before and after."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

from jinja2 import Environment, FileSystemLoader

from idefics.batch.output_file import replace_file
from idefics.batch.records import compact_json, escape_surrogates
from idefics.batch.report import content_hash, format_duration, read_report_style
from idefics.errors import OutputError
from idefics.train.logs import TrainingHistory
from idefics.train.records import SampleRecord, TrainingListener, ValidationRecord
from idefics.train.report_charts import training_charts

FOLDER = Path(__file__).parent
ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer to a sample row.

    Attributes:
        step: 0 before training.
        answer: the model's.
        is_right: whether it is the row's own answer, letter case and white space aside.
    """

    step: int
    answer: str
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswers:
    """A sample row and all answers to it.

    Attributes:
        row, prompt, reference: as in `SampleRecord`.
        pictures: JPEG files in base64.
        first: before training; None if there is none.
        between: during training.
        last: the latest after a step; None if there is none.
    """

    row: str
    prompt: str
    reference: str
    pictures: list[str]
    first: ShownAnswer | None
    between: list[ShownAnswer]
    last: ShownAnswer | None


def write_training_report(
    path: Path, history: TrainingHistory, pictures: Mapping[str, Sequence[bytes]]
) -> None:
    """Writes the report of a training, finished or not; an older file is replaced once the new one is complete.

    Args:
        path: where the page is written.
        history: what the training's log holds.
        pictures: the name of a sample row -> JPEG files of its pictures.

    Raises:
        OutputError: the page cannot be written.
    """
    style = read_report_style() + (FOLDER / "report.css").read_text(encoding="utf-8")
    samples = group_samples(history.samples, pictures)
    settings, steps = history.start["settings"], history.steps
    is_finished = bool(steps) and steps[-1].step == steps[-1].num_steps
    page = ENVIRONMENT.get_template("report.html.jinja").render(
        settings=settings,
        figures=list(_figures(history)),
        facts=list(_facts(history)),
        charts=training_charts(history),
        samples=samples,
        has_pictures=any(sample.pictures for sample in samples),
        last_title="After" if is_finished else "So far",
        style=style,
        style_hash=content_hash(style),
    )

    def write(file: BinaryIO, text: str) -> None:
        file.write(text.encode())

    replace_file(path, partial(write, text=escape_surrogates(page)))


class ReportWriter(TrainingListener):
    """Writes the report with each checkpoint, and at the end of its context.

    Args:
        path: of the page.
        history: of the training's log, which is a listener before this one.
        pictures: as in `write_training_report`.
    """

    def __init__(self, path: Path, history: TrainingHistory, pictures: Mapping[str, Sequence[bytes]]) -> None:
        self._write = partial(write_training_report, path, history, pictures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with suppress(OutputError) if error else nullcontext():  # the first error is the one to report
            self._write()

    def on_checkpoint(self, step: int, folder: str) -> None:
        """Writes the report."""
        self._write()


def group_samples(
    records: Sequence[SampleRecord], pictures: Mapping[str, Sequence[bytes]]
) -> list[SampleAnswers]:
    """The sample rows in their order, each with all its answers."""
    by_row: dict[str, list[SampleRecord]] = {}
    for record in records:
        by_row.setdefault(record.row, []).append(record)
    samples = []
    for row, found in by_row.items():
        answers = [
            ShownAnswer(one.step, one.answer, _normalized(one.answer) == _normalized(one.reference))
            for one in found
        ]
        later = [one for one in answers if one.step]
        samples.append(
            SampleAnswers(
                row=row,
                prompt=found[0].prompt,
                reference=found[0].reference,
                pictures=[base64.b64encode(one).decode() for one in pictures.get(row, ())],
                first=next((one for one in answers if not one.step), None),
                between=later[:-1],
                last=later[-1] if later else None,
            )
        )
    return samples


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _figures(history: TrainingHistory) -> Iterator[tuple[str, str]]:
    """The figures at the top of the page: (name, value)."""
    steps, validations = history.steps, history.validations
    if validations:
        first, last = validations[0], validations[-1]
        yield (
            "whole answers right",
            _change(first, last, f"{first.row_accuracy:.1%}", f"{last.row_accuracy:.1%}"),
        )
        yield "validation loss", _change(first, last, f"{first.loss:.3g}", f"{last.loss:.3g}")
    if steps:
        last_step = steps[-1]
        seconds = sum(one.seconds for one in steps)
        yield "loss", f"{steps[0].loss:.3g} \N{RIGHTWARDS ARROW} {last_step.loss:.3g}"
        of_all = "" if last_step.step == last_step.num_steps else f" of {last_step.num_steps:,}"
        yield "steps", f"{last_step.step:,}{of_all}"
        yield "epochs", f"{last_step.epoch:.3g}"
        yield "time in steps", format_duration(seconds)
        yield "tokens a second", f"{sum(one.num_tokens for one in steps) / max(seconds, 1e-9):,.0f}"


def _change(first: ValidationRecord, last: ValidationRecord, before: str, after: str) -> str:
    """Two figures with an arrow between them, or one if they are of the same validation."""
    return after if first is last else f"{before} \N{RIGHTWARDS ARROW} {after}"


def _facts(history: TrainingHistory) -> Iterator[tuple[str, str]]:
    """What the page says about the training: (name, value)."""
    facts: dict[str, Any] = dict(history.start)
    settings, versions = facts.pop("settings"), facts.pop("versions")
    for name, value in facts.items():
        yield name.replace("_", " "), value if isinstance(value, str) else compact_json(value)
    for name, value in settings.items():
        if value not in (None, []):
            yield name.replace("_", " "), value if isinstance(value, str) else compact_json(value)
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
