"""Parses the records of a table into `TrainingExample`s: a question and an answer, a text, or messages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from idefics.batch.rows import Media
from idefics.batch.sources.tables import IMAGE_COLUMNS, MAX_NAMED_COLUMNS
from idefics.errors import BadPrompt, did_you_mean
from idefics.evaluate.layouts.table import (
    ANSWER_COLUMNS,
    CAPTION_COLUMNS,
    CHOICE_COLUMNS,
    ID_COLUMNS,
    LABEL_COLUMNS,
    QUESTION_COLUMNS,
    column_texts,
    right_answers,
)
from idefics.messages import ContentPart, Message, Shot, user
from idefics.processing.message_parsing import PICTURE_KEY_PREFIXES
from idefics.tasks import TASKS
from idefics.tasks.task import compose_task_prompt
from idefics.train.data.conversations import parse_conversation, parse_document
from idefics.train.data.examples import PICTURE, ExamplePicture, TrainingExample
from idefics.train.data.texts import check_text
from idefics.validation import describe_type

IMAGES_COLUMN, MESSAGES_COLUMN, SHOTS_COLUMN, TEXT_COLUMN = "images", "messages", "shots", "text"
# What is learned, the first that a row has.
LEARNED_COLUMNS = (*ANSWER_COLUMNS, *LABEL_COLUMNS, *CAPTION_COLUMNS, TEXT_COLUMN)
KNOWN_COLUMNS = (
    IMAGES_COLUMN,
    *IMAGE_COLUMNS,
    *QUESTION_COLUMNS,
    *LEARNED_COLUMNS,
    MESSAGES_COLUMN,
    SHOTS_COLUMN,
)
UNREAD_COLUMNS = (*ID_COLUMNS, *CHOICE_COLUMNS)  # that evaluation reads
CONVERSATIONS_COLUMN = "conversations"  # of LLaVA's files: {"from": "human", "value": ...}
SHOT_KEYS = ("image", "answer", "question")
SIMILARITY = 0.81  # of two names, as difflib measures it, from which one counts as the other misspelt


@dataclass(frozen=True, slots=True)
class RecordParser:
    """Makes the examples of records.

    Attributes:
        find_media: makes the picture of a cell, given the name of its row.
        kind: of the checkpoint: "chat", or "base" for one that continues documents.
        image_column: the column of single pictures that the table declares; None: the first of `IMAGE_COLUMNS`.
        has_unused_turn_end: whether the tokenizer has a token that ends turns, which the model was not trained with.
    """

    find_media: Callable[[object, str], Media]
    kind: Literal["base", "chat"]
    image_column: str | None
    has_unused_turn_end: bool

    def parse(self, name: str, record: Mapping[str, Any], media: Media | None = None) -> TrainingExample:
        """The example of a record.

        Args:
            name: of the row.
            record: its columns.
            media: its picture, if that is not in a column.

        Raises:
            BadPrompt: it has nothing to learn, or a value of the wrong type.
            BadPicture: a cell cannot be a picture.
        """
        pictures = self._pictures(name, record) if media is None else [ExamplePicture(media=media)]
        unread = {one: value for one, value in record.items() if one != self.image_column}
        image_column = self.image_column or IMAGE_COLUMNS[0]
        _reject_misspelt_columns(name, unread, None if pictures else image_column)
        if _is_given(record.get(MESSAGES_COLUMN)):
            return self._parse_messages(name, record, pictures)
        column = next((one for one in LEARNED_COLUMNS if _is_given(record.get(one))), None)
        if column is None:
            raise BadPrompt(_nothing_to_learn(name, record))
        question_column = next((one for one in QUESTION_COLUMNS if _is_given(record.get(one))), None)
        if column == TEXT_COLUMN and isinstance(record[TEXT_COLUMN], (list, tuple)):
            return self._parse_document(name, record, pictures, question_column)
        answer = _answer_text(name, record, column)
        shots, shot_pictures = self._shots(name, record)
        empty = next((one for one in QUESTION_COLUMNS if one in record), None)
        if question_column is None and empty is not None and column in ANSWER_COLUMNS:
            raise BadPrompt(
                f"{name} has an answer and an empty {empty}: fill it in, or give the words of a caption as text"
            )
        if question_column is None and column in LABEL_COLUMNS:
            raise BadPrompt(
                f"{name} has a {column} and no question: add a column question, such as 'What is this?'"
            )
        if question_column is None and not pictures and not (self.kind == "base" and column == TEXT_COLUMN):
            raise BadPrompt(f"{name} has neither a question nor a picture: add one")
        question = (
            "" if question_column is None else check_text(name, question_column, record[question_column])
        )
        prompt = self._compose(question, len(pictures), shots, has_question=question_column is not None)
        return TrainingExample(name=name, prompt=prompt, answer=answer, pictures=(*shot_pictures, *pictures))

    def _compose(
        self, question: str, num_pictures: int, shots: Sequence[Shot], *, has_question: bool
    ) -> Sequence[Message] | Sequence[ContentPart]:
        """The prompt of `idefics ask`, or of `idefics caption` for a row without a question; see `Task`."""
        task = TASKS["ask" if has_question else "caption"]
        items = compose_task_prompt(task, self.kind, PICTURE, question, shots).items
        pictures = [PICTURE] * num_pictures  # in the place of the one
        last = items[-1]
        if isinstance(last, Message):
            return [*items[:-1], user(*pictures, *last.parts[1:])]
        index = max(at for at, item in enumerate(items) if item is PICTURE)
        return [*items[:index], *pictures, *items[index + 1 :]]

    def _parse_messages(
        self, name: str, record: Mapping[str, Any], pictures: Sequence[ExamplePicture]
    ) -> TrainingExample:
        """The example of a record with messages."""
        others = [
            one for one in (*QUESTION_COLUMNS, *LEARNED_COLUMNS, SHOTS_COLUMN) if _is_given(record.get(one))
        ]
        if others:
            raise BadPrompt(f"{name} has both messages and {others[0]}: leave one of them out")
        if self.kind == "base":
            reason = (
                ", and its embedding has no row for the token that ends a turn" * self.has_unused_turn_end
            )
            raise BadPrompt(
                f"{name} is a conversation, but this checkpoint continues documents{reason}: take an instruct "
                "checkpoint, or give question and answer"
            )
        value = _from_json(name, MESSAGES_COLUMN, record[MESSAGES_COLUMN])
        messages, all_pictures = parse_conversation(name, value, pictures, self._find_picture)
        return TrainingExample(name=name, prompt=messages, answer=None, pictures=all_pictures)

    def _parse_document(
        self,
        name: str,
        record: Mapping[str, Any],
        pictures: Sequence[ExamplePicture],
        question_column: str | None,
    ) -> TrainingExample:
        """The example of a record whose text is a list of text and pictures."""
        if self.kind == "chat" or question_column is not None or _is_given(record.get(SHOTS_COLUMN)):
            raise BadPrompt(
                f"{name} has a list as text, which is a document for a base checkpoint, such as 9b: give messages, or "
                "question and answer"
            )
        parts, all_pictures = parse_document(name, record[TEXT_COLUMN], pictures, self._find_picture)
        return TrainingExample(name=name, prompt=parts, answer=None, pictures=all_pictures)

    def _pictures(self, name: str, record: Mapping[str, Any]) -> list[ExamplePicture]:
        """The pictures in the columns of a record."""
        # With messages, a column such as "url" may be anything.
        has_messages = _is_given(record.get(MESSAGES_COLUMN))
        names = IMAGE_COLUMNS[:1] if has_messages else IMAGE_COLUMNS
        candidates = names if self.image_column is None else (self.image_column, *names)
        column = next((one for one in candidates if _is_given(record.get(one))), None)
        several = record.get(IMAGES_COLUMN)
        if not _is_given(several):
            return [] if column is None else [self._find_picture(record[column], name)]
        if column == "image":
            raise BadPrompt(f"{name} has both image and images: leave one of them out")
        values = _from_json(name, IMAGES_COLUMN, several)
        if not isinstance(values, (list, tuple)):
            raise BadPrompt(f"{name}: images is {describe_type(values)}; give a list of pictures")
        return [self._find_picture(one, name) for one in values]

    def _find_picture(self, value: object, name: str) -> ExamplePicture:
        """The picture that a cell, or a part of a message, gives."""
        return ExamplePicture(media=self.find_media(value, name))

    def _shots(self, name: str, record: Mapping[str, Any]) -> tuple[list[Shot], list[ExamplePicture]]:
        """The few-shot examples of a record, and their pictures."""
        value = record.get(SHOTS_COLUMN)
        if not _is_given(value):
            return [], []
        values = _from_json(name, SHOTS_COLUMN, value)
        example = '[{"image": "cat.jpg", "question": "What is this?", "answer": "A cat."}]'
        if not isinstance(values, (list, tuple)) or not all(isinstance(one, Mapping) for one in values):
            raise BadPrompt(f"{name}: shots is no list of objects: write {example}")
        shots, pictures = [], []
        for number, one in enumerate(values, 1):
            where = f"{name}: shot {number}"
            unknown = [key for key, given in one.items() if key not in SHOT_KEYS and _is_given(given)]
            if unknown or not _is_given(one.get("image")) or not _is_given(one.get("answer")):
                wrong = f"has the unknown key {unknown[0]!r}" if unknown else "needs an image and an answer"
                raise BadPrompt(f"{where} {wrong}: write {example}")
            question = (
                check_text(where, "question", one["question"]) if _is_given(one.get("question")) else ""
            )
            shots.append(Shot(PICTURE, check_text(where, "answer", one["answer"]).strip(), question))
            pictures.append(self._find_picture(one["image"], where))
        return shots, pictures


def _reject_misspelt_columns(name: str, record: Mapping[str, Any], image_column: str | None) -> None:
    """Refuses a column that was meant to be read, as far as its name tells; others are not read.

    A row without its picture, or with the prompt of a caption in place of its question, would be learned otherwise.

    Args:
        image_column: where its picture would be; None: it has one.

    Raises:
        BadPrompt: a name resembles one that is read, or is one of a picture, and the row has none.
    """
    for column in (one for one in record if one not in (*KNOWN_COLUMNS, *UNREAD_COLUMNS)):
        if not _is_given(record[column]):
            continue
        meant = next(iter(get_close_matches(column.lower(), KNOWN_COLUMNS, 1, SIMILARITY)), None)
        if meant is None and image_column is not None and column.lower().startswith(PICTURE_KEY_PREFIXES):
            meant = image_column
        if meant is not None:
            raise BadPrompt(
                f"{name} has the column {column!r}, which is not read: call it {meant!r}, or leave it out"
            )


def _answer_text(name: str, record: Mapping[str, Any], column: str) -> str:
    """The answer in a column; of several the most frequent; of a class that is a number, the choice of that number.

    Raises:
        BadPrompt: it is neither text nor a number, or blank.
    """
    value = record[column]
    if column != TEXT_COLUMN and not isinstance(value, (bool, Mapping)):
        try:
            texts = right_answers({column: value}, column_texts(record, CHOICE_COLUMNS), ())
        except BadPrompt as error:
            raise BadPrompt(f"{name}: {error}") from None
        value = Counter(texts).most_common(1)[0][0] if texts else ""
    text = check_text(name, column, value).strip()
    if not text:
        raise BadPrompt(f"{name} has an empty column {column}: fill it in, or leave the row out")
    return text


def _nothing_to_learn(name: str, record: Mapping[str, Any]) -> str:
    """The message about a record without an answer: which column is empty, or which columns there are."""
    empty = next((one for one in (*LEARNED_COLUMNS, MESSAGES_COLUMN) if one in record), None)
    if empty is not None:
        return f"{name} has an empty column {empty}: fill it in, or leave the row out"
    if CONVERSATIONS_COLUMN in record:
        return (
            f"{name} has {CONVERSATIONS_COLUMN}, which are not read: write messages, such as "
            '[{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]'
        )
    columns = list(map(str, record))
    listed = ", ".join(columns[:MAX_NAMED_COLUMNS]) + (", ..." if len(columns) > MAX_NAMED_COLUMNS else "")
    unknown = [one for one in columns if one not in KNOWN_COLUMNS]
    hint = did_you_mean(unknown, (*LEARNED_COLUMNS, MESSAGES_COLUMN))
    return f"{name} has no column answer, text or messages{hint}; it has {listed or 'none'}"


def _is_given(value: object) -> bool:
    """Whether a cell has a value."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, (list, tuple, Mapping)) and not value)


def _from_json(name: str, column: str, value: object) -> Any:
    """The content of a cell that holds JSON as text, as in CSV; any other value as it is.

    Raises:
        BadPrompt: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadPrompt(f"{name}: {column} is not valid JSON: {error}") from None
