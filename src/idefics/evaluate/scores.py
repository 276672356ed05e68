"""What an evaluation scores and what comes of it: `EvaluatedRow`, `Figure`, `Scores` and `Metric`. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from idefics.evaluate.bootstrap import Interval, RowStatistic


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRow:
    """A row of a suite with the model's answer.

    Attributes:
        name, id, path: of the row; see `BatchRow`.
        question: what was asked; "" if the suite has no questions.
        answer: the generated text, cut at the stop words, or the most likely label; "" for an error.
        uncut_answer: the generated text as it was.
        label_scores: the score of each label, in the order of `labels`; empty for generated text.
        references: the right answers; empty: none is known, as of a malformed row, and the row is not scored.
        labels, relevance, group: see `EvaluationRow`.
        error: why there is no answer; "" if there is one. Such a row counts as wrong.
    """

    name: str
    id: str
    path: str
    question: str = ""
    answer: str
    uncut_answer: str = ""
    label_scores: tuple[float, ...] = ()
    references: tuple[str, ...]
    labels: tuple[str, ...] = ()
    relevance: tuple[float, ...] = ()
    group: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a report.

    Attributes:
        name: what it is, such as "VQA accuracy".
        interval: the value with its 95 % interval, as published tables give it (0 to 100 for shares).
        note: how it is computed, where that is not plain; "".
    """

    name: str
    interval: Interval
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """The result of a metric.

    Attributes:
        rows: the score of each row, from 0 to 1 unless the metric says otherwise.
        figures: the figures of all rows together; the first is the one that is compared with published figures.
        numbers: of each row, what the first figure is computed from if it is not the mean of `rows`; else empty. Of a
            pair of rows (Winoground), both have the score of the pair.
        notes: sentences about what limits the figures.
    """

    rows: tuple[float, ...]
    figures: tuple[Figure, ...]
    numbers: tuple[tuple[float, ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of suites.

    Attributes:
        title: for lists.
        compute: the scores of rows; the second argument seeds the bootstrap.
        statistic: computes the first figure, from 0 to 1, from the rows' `numbers`; None: it is a mean.
    """

    title: str
    compute: Callable[[Sequence[EvaluatedRow], int], Scores]
    statistic: RowStatistic | None = None
