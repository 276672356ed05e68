"""The data of a suite: `SuiteData` reads a folder in the suite's layout, a table, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from idefics.batch.sources.hub_dataset import HUB_PREFIX
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadSetting
from idefics.evaluate.layouts import find_layout
from idefics.evaluate.layouts.easy_vqa import installed_easy_vqa
from idefics.evaluate.layouts.scenes import SCENES_FOLDER
from idefics.evaluate.layouts.table import answer_kind, read_table
from idefics.evaluate.suite import EvaluationRow, Suite
from idefics.tasks.classify import MAX_LABELS

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
ROWS_TO_JUDGE_BY = 100


class RowReader:
    """The rows of a suite; implements `RowSource`."""

    def __init__(self, read: Callable[[], Iterator[EvaluationRow]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[EvaluationRow]:
        """Yields the rows, from the beginning each time."""
        return self._read()

    def count_rows(self) -> int | None:
        """None: the number of rows is not known before they are read."""
        return None

    def describe_skipped(self) -> str:
        """Nothing is left out."""
        return ""


@dataclass(frozen=True, slots=True)
class SuiteData:
    """The data of a suite.

    Attributes:
        suite: the suite, whose layout a folder has.
        location: a folder, a table or "hf:owner/name:split"; "": what is installed.
        split: of a folder.
        question: of the rows of a table that have none of their own; None: they have none.
        sources: how a table is read.
    """

    suite: Suite
    location: str
    split: str
    question: str | None = None
    sources: SourceSettings = field(default_factory=SourceSettings)

    @property
    def is_table(self) -> bool:
        """Whether the data are a table rather than a folder in the suite's layout."""
        return (
            self.suite.layout == "table"
            or self.location.startswith(HUB_PREFIX)
            or self.location.endswith(TABLE_SUFFIXES)
        )

    def rows(self) -> RowReader:
        """The rows.

        Raises:
            BadSetting: there are no data.
        """
        if self.is_table:
            if not self.location:
                raise BadSetting(f"no data given: name a table or a folder with --data for {self.suite.name}")
            return RowReader(
                partial(read_table, self.location, self.sources, self.question, self.suite.labels)
            )
        return RowReader(partial(find_layout(self.suite.layout), self._folder(), self.split))

    def resolve_suite(self, source: RowReader) -> Suite:
        """The suite with what the columns of a table say: the kind of the answers, the labels and the metric.

        Raises:
            BadSetting: there are no rows, or the table lacks a column.
        """
        first = next((row for row in source if row.columns or not self.is_table), None)
        if first is None:
            raise BadSetting(f"{self.location} has no rows")
        if not self.is_table:
            return self.suite
        suite = self.suite
        kind, has_questions = answer_kind(first), "question" in first.fields
        if suite.layout != "table":
            return suite
        if kind == "label" or first.labels:
            labels = () if first.labels else self._all_labels(source)
            return replace(
                suite, answer="rank", metric="accuracy", labels=labels, has_questions=has_questions
            )
        if kind == "caption":
            return replace(suite, answer="caption", metric="cider", has_questions=False)
        if not has_questions:
            raise BadSetting(
                f"{self.location} has no column question: add one, or give one question for all with --question"
            )
        several = any(len(row.references) > 1 for row in islice(source, ROWS_TO_JUDGE_BY))
        return replace(suite, metric="vqa" if several else "exact-match")

    def _all_labels(self, source: RowReader) -> tuple[str, ...]:
        """The different labels of all rows of a table, sorted."""
        labels = sorted({row.references[0] for row in source if row.references})
        if not 2 <= len(labels) <= MAX_LABELS:
            raise BadSetting(
                f"{self.location} has {len(labels)} different labels; ranking needs 2 to {MAX_LABELS}"
            )
        return tuple(labels)

    def _folder(self) -> Path:
        """The folder of the data. Raises BadSetting if there is none."""
        if not self.location:
            if self.suite.layout == "easy_vqa":
                return installed_easy_vqa()
            if self.suite.layout == "scenes":
                return SCENES_FOLDER
            raise BadSetting(
                f"no data given: name the folder of {self.suite.name} with --data; docs/evaluation.md describes it"
            )
        folder = Path(self.location)
        if not folder.is_dir():
            raise BadSetting(f"data is {self.location}, which is no folder, no table and no hf:owner/name")
        return folder
