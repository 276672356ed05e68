"""Tables with right answers: a user's CSV, JSONL or Parquet, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from idefics.batch.rows import BatchRow
from idefics.batch.sources.inputs import open_source
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import text_list
from idefics.evaluate.suite import EvaluationRow

# The columns that are read, the first of each line that a table has.
QUESTION_COLUMNS = ("question", "prompt", "query")
ANSWER_COLUMNS = ("answers", "answer")
CAPTION_COLUMNS = ("captions", "caption", "references", "sentences")
LABEL_COLUMNS = ("label", "class")
CHOICE_COLUMNS = ("choices", "options", "labels", "candidates")
ID_COLUMNS = ("id", "question_id", "questionId", "image_id")
SEPARATOR = "|"


def read_table(
    argument: str, settings: SourceSettings, question: str | None = None, suite_labels: tuple[str, ...] = ()
) -> Iterator[EvaluationRow]:
    """Reads a table: the picture as `idefics run` finds it, and the columns above.

    Args:
        argument: a file, a folder with metadata.csv or .jsonl, or "hf:owner/name:split".
        settings: how the input is read.
        question: of rows that have none of their own; None: they have none.
        suite_labels: those of the suite, which the number of a label counts.

    Raises:
        BadPicture, BadSetting, MissingExtra: the table cannot be read.
    """
    for row in open_source([argument], settings):
        yield to_evaluation_row(row, question, suite_labels)


def to_evaluation_row(
    row: BatchRow, question: str | None = None, suite_labels: tuple[str, ...] = ()
) -> EvaluationRow:
    """A row of a table with its question, its right answers and its labels.

    A row without a right answer is a row with an error.
    """
    columns = row.columns
    own_question = _first_text(columns, QUESTION_COLUMNS) or question
    choices = column_texts(columns, CHOICE_COLUMNS)
    label = next((columns[name] for name in LABEL_COLUMNS if columns.get(name) not in (None, "")), None)
    references = (
        (_label_text(label, choices or suite_labels),)
        if label is not None
        else column_texts(columns, ANSWER_COLUMNS) or column_texts(columns, CAPTION_COLUMNS)
    )
    error = row.error
    if not error and not references:
        error = f"{row.name} has no right answer: its cell is empty"
    fields = {name: str(value) for name, value in columns.items() if isinstance(value, (str, int, float))}
    return EvaluationRow(
        name=row.name,
        id=row.id or _first_text(columns, ID_COLUMNS),
        media=None if error else row.media,
        columns=columns,
        error=error,
        fields=fields | ({} if own_question is None else {"question": own_question}),
        references=references,
        labels=choices,
    )


def answer_kind(row: EvaluationRow) -> str:
    """What the right answers of a table are: "label", "answer" or "caption", by the columns of a row of it.

    Raises:
        BadSetting: the table has no column of right answers.
    """
    for kind, names in (("label", LABEL_COLUMNS), ("answer", ANSWER_COLUMNS), ("caption", CAPTION_COLUMNS)):
        if any(name in row.columns for name in names):
            return kind
    listed = ", ".join(row.columns) or "none"
    raise BadSetting(
        "the table has no column of right answers: call it answer, answers, caption, captions or label; it has "
        f"{listed}"
    )


def _first_text(columns: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the columns that is not empty, as text; "" if all are."""
    return next((str(columns[name]) for name in names if columns.get(name) not in (None, "")), "")


def column_texts(columns: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of the first of the columns that is not empty.

    A cell of text is one text; a JSON list; or, in a column whose name is a plural, several with "|" between them.
    """
    for name in names:
        value = columns.get(name)
        if value is None or value in ("", []):
            continue
        if isinstance(value, str):
            if value.startswith("["):
                with suppress(ValueError):
                    value = json.loads(value)
            elif name.endswith("s"):
                value = [part.strip() for part in value.split(SEPARATOR)]
        return text_list(value, "answer" if name in ANSWER_COLUMNS else "caption")
    return ()


def _label_text(label: object, choices: tuple[str, ...]) -> str:
    """The right label: one of the choices if it is the number of one, else as it is."""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return choices[label]
    return str(label)
