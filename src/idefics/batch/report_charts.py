"""The charts of a report: labels, errors, lengths and durations, counted in one pass over the records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Literal

from idefics.batch.records import OutputRecord

MAX_LABELS, MAX_LABEL_LENGTH = 30, 40
MAX_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a chart.

    Attributes:
        name: the label, or the range of values, that is counted.
        count: number of rows.
        percent: its length, in percent of the longest bar.
    """

    name: str
    count: int
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A bar chart or a histogram.

    Attributes:
        kind: "bars": one for each name, the most frequent first; "histogram": ranges of values in their order.
        title: what is counted.
        note: a sentence below the title.
        bars: at least one.
    """

    kind: Literal["bars", "histogram"]
    title: str
    note: str
    bars: list[Bar]


class RecordStatistics:
    """Counts over all records of a report. Memory does not depend on the number of records.

    Attributes:
        num_rows: records so far.
        num_errors: those that are errors.
        prompt: the prompt that all records have in common; None if they differ.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_errors = 0
        self.prompt: str | None = None
        self._ranked: Counter[str] = Counter()
        self._short: Counter[str] | None = Counter()  # None: the answers are no labels
        self._errors: Counter[str] = Counter()
        self._lengths: Counter[float] = Counter()
        self._seconds: Counter[float] = Counter()

    def add(self, record: OutputRecord) -> None:
        """Counts one record."""
        self.prompt = record.prompt if not self.num_rows or self.prompt == record.prompt else None
        self.num_rows += 1
        if record.error_type is not None:
            self.num_errors += 1
            self._errors[record.error_type] += 1
        if record.seconds is not None:
            self._seconds[float(f"{record.seconds:.2e}")] += 1
        if record.text is None:
            return
        if record.probabilities is not None:
            self._ranked[record.text] += 1
            return
        self._lengths[len(record.text)] += 1
        if self._short is not None:
            self._short[record.text] += 1
            if len(record.text) > MAX_LABEL_LENGTH or len(self._short) > MAX_LABELS:
                self._short = None

    def labels(self) -> list[str]:
        """The most frequent labels, or the answers if there are few and short ones; at most 30."""
        return [label for label, _ in (self._ranked or self._short or Counter()).most_common(MAX_LABELS)]

    def charts(self) -> list[Chart]:
        """The charts that have something to show."""
        return [
            *_bar_chart("Labels" if self._ranked else "Answers", self._ranked or self._short or Counter()),
            *_bar_chart("Errors", self._errors),
            *_histogram("Length of the answers", "characters", self._lengths),
            *_histogram("Time for a row", "seconds", self._seconds),
        ]


def _bar_chart(title: str, counts: Counter[str]) -> list[Chart]:
    """A chart of the 30 highest counts; nothing if there are none."""
    if not counts:
        return []
    shown = counts.most_common(MAX_LABELS)
    more = len(counts) - len(shown)
    note = f"{len(counts):,} different" + (f", {more:,} less frequent ones not shown" if more else "")
    bars = [Bar(name=name, count=count, percent=100 * count / shown[0][1]) for name, count in shown]
    return [Chart(kind="bars", title=title, note=note, bars=bars)]


def _histogram(title: str, unit: str, counts: Counter[float]) -> list[Chart]:
    """A histogram with ranges of equal width, as many as the Rice rule has (2 n^(1/3)) but at most 20.

    The last range has all values above the 99th percentile as well, so that one slow row does not flatten the rest.
    Without values there is no chart.
    """
    if not counts:
        return []
    values = sorted(counts)
    median, high = _percentile(counts, 0.5), _percentile(counts, 0.99)
    num_bins = min(MAX_BINS, ceil(2 * counts.total() ** (1 / 3)))
    width = nice_step((high - values[0]) / num_bins, at_least=1 if unit == "characters" else 0.001)
    first, last = floor(values[0] / width + 1e-9), floor(high / width + 1e-9)
    bins = [0] * (last - first + 1)
    for value, count in counts.items():
        bins[min(floor(value / width + 1e-9), last) - first] += count
    digits = max(0, ceil(-log10(width)))

    def name(index: int) -> str:
        low, end = (first + index) * width, (first + index + 1) * width
        if index == len(bins) - 1 and values[-1] >= end:
            return f"{low:,.{digits}f} or more"
        if unit == "characters":
            return f"{low:,.0f}" if width == 1 else f"{low:,.0f} to {end - 1:,.0f}"
        return f"{low:,.{digits}f} to {end:,.{digits}f}"

    bars = [
        Bar(name=name(index), count=count, percent=100 * count / max(bins))
        for index, count in enumerate(bins)
    ]
    note = f"{values[0]:,g} to {values[-1]:,g} {unit}, median {median:,g}"
    return [Chart(kind="histogram", title=title, note=note, bars=bars)]


def _percentile(counts: Counter[float], share: float) -> float:
    """The least value that at least `share` of all values do not exceed."""
    remaining = ceil(share * counts.total())
    for value in sorted(counts):
        remaining -= counts[value]
        if remaining <= 0:
            return value
    return max(counts)


def nice_step(width: float, *, at_least: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is at least as wide."""
    width = max(width, at_least)
    power = 10.0 ** floor(log10(width) + 1e-9)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9))
