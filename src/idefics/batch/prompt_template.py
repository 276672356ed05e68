"""Prompts with fields: "What colour is the {item}?" is filled from the row, its file's name, and its sidecar."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any

from idefics.batch.rows import BatchRow, Media
from idefics.errors import BadPrompt, BadSetting

NAME, FOLDER, CAPTION = "name", "folder", "caption"
# A literal brace, a field, or a brace that belongs to neither.
BRACES = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]*)\}|(?P<stray>[{}])")
FIELD_NAME = re.compile(r"[^.\[\]!:]+")
SYNTAX_BY_CHARACTER = {
    ".": "an attribute",
    "[": "an index",
    "]": "an index",
    "!": "a conversion",
    ":": "a format",
}
NUM_CHECKED_ROWS = 100
MAX_NAMED_COLUMNS = 20  # that an error message lists


class PromptRenderer:
    """Base of what makes the prompts of rows: a `PromptTemplate`, or what an evaluation has in its place."""

    @property
    def needs_caption(self) -> bool:
        """Whether `render` reads the text of the picture's sidecar: False."""
        return False

    def render(self, row: BatchRow, caption: str | None) -> str:
        """The prompt of one row; see `PromptTemplate.render`."""
        raise NotImplementedError

    def further_media(self, row: BatchRow, prompt: str | None) -> Sequence[Media]:
        """The pictures that the prompt of a row refers to after the row's own; the prompt identifies their content."""
        return ()


class PromptTemplate(PromptRenderer):
    """A prompt with fields in braces.

    A field is a column of the row. Where the row has no such column, `{name}` is the name of the picture's file without
    its suffix, `{folder}` the name of the folder that holds it, and `{caption}` the text of its sidecar. `{{` and `}}`
    are literal braces. Attributes, indices, conversions and formats are not supported.

    Args:
        text: the template; without a field, `render` returns it with its literal braces.

    Attributes:
        fields: the names of the fields, each once, in their order.

    Raises:
        BadSetting: a field is empty or not a plain name, or a brace stands alone.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields: tuple[str, ...] = tuple(
            dict.fromkeys(_field_name(match, text) for match in BRACES.finditer(text) if _is_field(match))
        )

    @property
    def needs_caption(self) -> bool:
        """Whether the template has the field `{caption}`."""
        return CAPTION in self.fields

    def check_fields(self, source: Iterable[BatchRow]) -> None:
        """Checks, before a run, that the fields are columns: of one of the first hundred rows at least.

        Raises:
            BadPrompt: none of these rows has a column that the template names.
        """
        first_rows = [row for row in islice(source, NUM_CHECKED_ROWS) if row.media is not None]
        for field in self.fields:
            is_known = field in (NAME, FOLDER, CAPTION) or any(field in row.columns for row in first_rows)
            if first_rows and not is_known:
                _field_value(field, first_rows[0], None)  # raises, and lists the columns

    def render(self, row: BatchRow, caption: str | None) -> str:
        """The prompt of one row.

        Args:
            row: its columns and the path of its picture are used.
            caption: the text of the picture's sidecar; None: it has none.

        Raises:
            BadPrompt: a field has no value for this row.
        """
        values = {field: _field_value(field, row, caption) for field in self.fields}

        def fill(match: re.Match[str]) -> str:
            return values[match["field"]] if _is_field(match) else match[0][0]

        return BRACES.sub(fill, self.text)


def _is_field(match: re.Match[str]) -> bool:
    """Whether a match of `BRACES` is no literal brace."""
    return match["field"] is not None or match["stray"] is not None


def _field_name(match: re.Match[str], text: str) -> str:
    """The name of the field that a match of `BRACES` in a template is; raises BadSetting if it is no plain name."""
    name = match["field"]
    if name is None:
        raise BadSetting(
            f"the prompt has a single {match[0]} at character {match.start() + 1}: write {match[0] * 2} for a brace, "
            "or {column} for a field"
        )
    if not name.strip():
        raise BadSetting(
            f"the prompt has a field without a name, {match[0]}: write {{column}}, or {{{{}}}} for braces"
        )
    if not FIELD_NAME.fullmatch(name):
        syntax = next(
            SYNTAX_BY_CHARACTER[character] for character in name if character in SYNTAX_BY_CHARACTER
        )
        raise BadSetting(f"the field {match[0]} of the prompt has {syntax}: write the name of a column alone")
    return name


def _field_value(field: str, row: BatchRow, caption: str | None) -> str:
    """The text of a field for a row; raises BadPrompt if there is none."""
    if field in row.columns:
        return _checked_text(row.columns[field], f"the column {field!r} of {row.name}")
    if field == CAPTION:
        if caption is None:
            raise BadPrompt(
                f"{row.name} has no sidecar with a text, which {{{CAPTION}}} of the prompt stands for"
            )
        return _checked_text(
            caption, f"the sidecar of {row.name}, which {{{CAPTION}}} of the prompt stands for,"
        )
    if field in (NAME, FOLDER):
        path = _picture_path(row)
        return _checked_text(
            path.stem if field == NAME else path.parent.name, f"{{{field}}} of the prompt for {row.name}"
        )
    columns = list(row.columns)
    listed = ", ".join(columns[:MAX_NAMED_COLUMNS]) + (", ..." if len(columns) > MAX_NAMED_COLUMNS else "")
    has = f"it has {listed}" if columns else "it has no columns"
    raise BadPrompt(f"{row.name} has no column {field!r}, which {{{field}}} of the prompt stands for; {has}")


def _picture_path(row: BatchRow) -> PurePath:
    """The path of a row's picture, absolute if it is a file."""
    if row.media is None:
        return PurePath(row.name)
    if row.media.file is None:
        return PurePath(row.media.path)
    return PurePath(os.path.abspath(row.media.file))  # noqa: PTH100  # Path.resolve follows links


def _checked_text(value: Any, what: str) -> str:
    """A value as text; raises BadPrompt if it is empty, or neither text nor a number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadPrompt(f"{what} is empty: fill it in, or leave the field out of the prompt")
    if isinstance(value, (bytes, Mapping, list)):
        raise BadPrompt(f"{what} is neither text nor a number: leave the field out of the prompt")
    return str(value)
