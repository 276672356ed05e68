"""Tables with right answers: a user's CSV, JSONL or Parquet, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from idefics.batch.rows import BatchRow
from idefics.batch.sources.inputs import open_source
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadPrompt, BadSetting
from idefics.evaluate.layouts.choices import LETTERS, choice_question
from idefics.evaluate.layouts.files import text_list
from idefics.evaluate.metrics.accuracy import exact_match
from idefics.evaluate.suite import EvaluationRow

# The columns that are read, the first of each line that a table has.
QUESTION_COLUMNS = ("question", "prompt", "query")
ANSWER_COLUMNS = ("answers", "answer")
CAPTION_COLUMNS = ("captions", "caption", "references", "sentences")
LABEL_COLUMNS = ("label", "class")
CHOICE_COLUMNS = ("choices", "options", "labels", "candidates")
ID_COLUMNS = ("id", "question_id", "questionId", "image_id")
SEPARATOR = "|"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """How the rows of a table become those of an evaluation.

    Attributes:
        question: of rows that have none of their own; None: they have none.
        suite_labels: those of the suite, which the number of a label counts.
        lists_choices: whether a question is followed by its choices, a letter for each.
    """

    question: str | None = None
    suite_labels: tuple[str, ...] = ()
    lists_choices: bool = False


def read_table(argument: str, sources: SourceSettings, settings: TableSettings) -> Iterator[EvaluationRow]:
    """Reads a table: the picture as `idefics run` finds it, and the columns above.

    Args:
        argument: a file, a folder with metadata.csv or .jsonl, or "hf:owner/name:split".
        sources: how the input is read.
        settings: what becomes of its rows.

    Raises:
        BadPicture, BadSetting, MissingExtra: the table cannot be read.
    """
    for row in open_source([argument], sources):
        yield to_evaluation_row(row, settings)


def to_evaluation_row(row: BatchRow, settings: TableSettings) -> EvaluationRow:
    """A row of a table with its question, its right answers and its labels.

    A row without a right answer, or with an empty cell in place of its question, is a row with an error.
    """
    columns, error = row.columns, row.error
    question = _first_text(columns, QUESTION_COLUMNS) or settings.question
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    try:
        choices = column_texts(columns, CHOICE_COLUMNS)
        references = right_answers(columns, choices, settings.suite_labels)
    except BadPrompt as wrong:
        error = error or f"{row.name}: {wrong}"
    if not error and not references:
        error = f"{row.name} has no right answer: its cell is empty"
    if not error and question is None and any(name in columns for name in QUESTION_COLUMNS):
        error = f"{row.name} has no question: its cell is empty"
    if question is not None and settings.lists_choices:
        question = choice_question(question, choices)
    fields = {name: str(value) for name, value in columns.items() if isinstance(value, (str, int, float))}
    return EvaluationRow(
        name=row.name,
        id=row.id or _first_text(columns, ID_COLUMNS),
        media=None if error else row.media,
        columns=columns,
        error=error,
        fields=fields | ({} if question is None else {"question": question}),
        references=references,
        labels=choices,
    )


def answer_kind(rows: Sequence[EvaluationRow]) -> str:
    """What the right answers of a table are: "label", "answer" or "caption", by the columns of its first rows.

    Raises:
        BadSetting: the table has no column of right answers.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row.columns))
    for kind, names in (("label", LABEL_COLUMNS), ("answer", ANSWER_COLUMNS), ("caption", CAPTION_COLUMNS)):
        if any(name in columns for name in names):
            return kind
    raise BadSetting(
        "the table has no column of right answers: call it answer, answers, caption, captions or label; it has "
        f"{', '.join(columns) or 'none'}"
    )


def has_questions(rows: Sequence[EvaluationRow]) -> bool:
    """Whether a row has a question or a column for one."""
    return any(
        "question" in row.fields or any(name in row.columns for name in QUESTION_COLUMNS) for row in rows
    )


def _first_text(columns: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the columns that is not blank, as text; "" if all are."""
    texts = ("" if columns.get(name) is None else str(columns[name]) for name in names)
    return next((text for text in texts if text.strip()), "")


def column_texts(columns: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of the first of the columns that is not blank.

    A cell of text is one text; a JSON list; or, in a column whose name is a plural, several with "|" between them.

    Raises:
        BadPrompt: a value is neither a text nor a list of texts.
    """
    for name in names:
        value = columns.get(name)
        if isinstance(value, str):
            if value.startswith("["):
                with suppress(ValueError):
                    value = json.loads(value)
            elif name.endswith("s"):
                value = value.split(SEPARATOR)
        texts = text_list(value, "answer" if name in ANSWER_COLUMNS else "caption")
        if texts:
            return texts
    return ()


def right_answers(
    columns: Mapping[str, Any], choices: tuple[str, ...], suite_labels: tuple[str, ...]
) -> tuple[str, ...]:
    """The right label, else the right answers, else the captions of a row; those of choices as the choices are spelled.

    Raises:
        BadPrompt: a value is neither a text nor a list of texts.
    """
    labels = choices or suite_labels
    label = next((columns[name] for name in LABEL_COLUMNS if columns.get(name) is not None), None)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return (labels[label],)
    texts = (
        text_list(label) or column_texts(columns, ANSWER_COLUMNS) or column_texts(columns, CAPTION_COLUMNS)
    )
    return tuple(_find_label(text, labels) for text in texts)


def _find_label(text: str, labels: tuple[str, ...]) -> str:
    """The label that a text names: by its spelling, its number from 0, or its letter; the text itself if it is none."""
    if text in labels:
        return text
    for label in labels:
        if exact_match(text, (label,)):
            return label
    number = (
        int(text) if text.isdecimal() and text.isascii() else LETTERS.find(text) if len(text) == 1 else -1
    )
    return labels[number] if 0 <= number < len(labels) else text
