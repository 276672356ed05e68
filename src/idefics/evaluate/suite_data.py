"""The data of a suite: `SuiteData` reads a folder in the suite's layout, a table, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from idefics.batch.rows import RowSource
from idefics.batch.sources.hub_dataset import HUB_PREFIX
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadSetting, IdeficsError
from idefics.evaluate.layouts import find_layout
from idefics.evaluate.layouts.drawn import SCENES_FOLDER, installed_easy_vqa
from idefics.evaluate.layouts.table import TableSettings, answer_kind, has_questions, read_table
from idefics.evaluate.suite import LAYOUT_METRICS, EvaluationRow, Suite
from idefics.tasks.classify import MAX_LABELS

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
ROWS_TO_JUDGE_BY = 100
LAYOUTS_WITHOUT_FOLDER = ("easy_vqa", "scenes")  # of data that are installed


@dataclass(frozen=True, slots=True)
class RowReader(RowSource):
    """The rows of a suite, whose number is not known before they are read."""

    read: Callable[[], Iterator[EvaluationRow]]

    def __iter__(self) -> Iterator[EvaluationRow]:
        """Yields the rows, from the beginning each time."""
        return self.read()


@dataclass(frozen=True, slots=True)
class SuiteData:
    """The data of a suite.

    Attributes:
        suite: the suite, whose layout a folder has.
        location: a folder, a table or "hf:owner/name:split"; "": what is installed.
        split: of a folder.
        question: of the rows of a table that have none of their own; None: they have none.
        sources: how a table is read.
        lists_choices: see `TableSettings`.
    """

    suite: Suite
    location: str
    split: str
    question: str | None = None
    sources: SourceSettings = field(default_factory=SourceSettings)
    lists_choices: bool = False

    @property
    def is_table(self) -> bool:
        """Whether the data are a table rather than a folder in the suite's layout."""
        return (
            self.suite.layout == "table"
            or self.location.startswith(HUB_PREFIX)
            or self.location.lower().endswith(TABLE_SUFFIXES)
        )

    def rows(self) -> RowReader:
        """The rows.

        Raises:
            BadSetting: there are no data.
        """
        if self.is_table:
            if not self.location:
                raise BadSetting(f"no data given: name a table or a folder with --data for {self.suite.name}")
            if self.location.lower().endswith(".json"):
                raise BadSetting(
                    f"{self.location} is JSON: give JSON lines (.jsonl), with an object for each row on a line of its "
                    "own, or CSV"
                )
            settings = TableSettings(
                question=self.question, suite_labels=self.suite.labels, lists_choices=self.lists_choices
            )
            return RowReader(partial(read_table, self.location, self.sources, settings))
        return RowReader(self._read_folder)

    def _read_folder(self) -> Iterator[EvaluationRow]:
        """Yields the rows of a folder. Raises BadSetting if it is not laid out as the suite's."""
        try:
            yield from find_layout(self.suite.layout)(self._folder(), self.split)
        except IdeficsError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadSetting(
                f"{self.location} is not laid out as {self.suite.name} is ({type(error).__name__}: {error}): "
                "docs/evaluation.md describes it"
            ) from error

    def resolve_suite(self, source: RowReader) -> Suite:
        """The suite with what the columns of a table say: the kind of the answers, the labels and the metric.

        Raises:
            BadSetting: there are no rows, or the table lacks a column or does not fit the suite.
        """
        suite = self.suite
        if not self.is_table:
            if next(iter(source), None) is None:
                raise BadSetting(f"{self.location} has no rows")
            return suite
        rows = list(islice((row for row in source if row.columns), ROWS_TO_JUDGE_BY))
        if not rows:
            raise self._no_rows_error(source)
        if suite.metric in LAYOUT_METRICS:
            raise BadSetting(
                f"a table has not all that {suite.name} needs: name a folder in its layout with --data"
            )
        kind = answer_kind(rows)
        if suite.layout != "table":
            return suite
        has_choices = any(row.labels for row in rows)
        if kind == "label" or has_choices:
            labels = () if has_choices else self._all_labels(source)
            return replace(
                suite, answer="rank", metric="accuracy", labels=labels, has_questions=has_questions(rows)
            )
        if kind == "caption":
            return replace(suite, answer="caption", metric="cider", has_questions=False)
        if not has_questions(rows):
            raise BadSetting(
                f"{self.location} has no column question: add one, or give one question for all with --question"
            )
        several = any(len(row.references) > 1 for row in rows)
        return replace(suite, metric="vqa" if several else "exact-match")

    def _no_rows_error(self, source: RowReader) -> BadSetting:
        """The error about a table without a row that has columns."""
        first = next(iter(source), None)
        if first is None:
            return BadSetting(f"{self.location} has no rows")
        if first.media is None and "right answer" not in first.error:
            return BadSetting(f"{self.location} has no rows; the first error: {first.error}")
        return BadSetting(
            f"{self.location} has pictures, but no right answers: give a table such as .csv or .jsonl, or a folder "
            "with a metadata.csv"
        )

    def _all_labels(self, source: RowReader) -> tuple[str, ...]:
        """The different labels of all rows of a table, sorted."""
        labels = sorted({row.references[0] for row in source if row.references})
        if not 2 <= len(labels) <= MAX_LABELS:
            raise BadSetting(
                f"{self.location} has {len(labels)} different labels; ranking needs 2 to {MAX_LABELS}"
            )
        first_by_spelling: dict[str, str] = {}
        for label in labels:
            first = first_by_spelling.setdefault(label.casefold(), label)
            if first != label:
                raise BadSetting(
                    f"{self.location} has the labels {first!r} and {label!r}, which differ in case alone: give "
                    "both the same spelling"
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
