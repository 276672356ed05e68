"""Parses the messages of a training row, and the parts of a document; finds their pictures.

A picture part has a source of its own, as in `processing.message_parsing`, or takes the next one of the row's column
`images`, as in data sets for TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from idefics.errors import BadPrompt
from idefics.messages import ContentPart, Message, Picture
from idefics.processing.message_parsing import KEYS_BY_PART_TYPE, to_messages
from idefics.train.data.examples import PICTURE, ExamplePicture
from idefics.train.data.texts import check_text
from idefics.validation import describe_type

FindPicture = Callable[[object, str], ExamplePicture]
NEXT_PICTURE = "the next picture of the row"  # stands for the source of a picture part that has none


def parse_conversation(
    name: str, value: object, pictures: Sequence[ExamplePicture], find_picture: FindPicture
) -> tuple[list[Message], tuple[ExamplePicture, ...]]:
    """The messages of a row, whose answers are all learned, and their pictures in order.

    Args:
        name: of the row.
        value: a list of messages.
        pictures: those of the row's own column; if no message places them, they stand at the beginning of the user's
            first message.
        find_picture: makes a picture of a source and the row's name.

    Raises:
        BadPrompt: something is wrong with the messages, or there is nothing to learn.
        BadPicture: a picture has no source that can be read.
    """
    if not isinstance(value, (list, tuple)):
        raise BadPrompt(f"{name}: messages is {describe_type(value)}; give a list of messages")
    parsed = _parse(name, [_with_sources(one) for one in value])
    _check_answers(name, parsed)
    has_pictures = any(isinstance(part, Picture) for message in parsed for part in message.parts)
    if pictures and not has_pictures:
        first = next((at for at, message in enumerate(parsed) if message.role == "user"), 0)
        placed = [Picture(NEXT_PICTURE)] * len(pictures)
        parsed[first] = replace(parsed[first], parts=(*placed, *parsed[first].parts))
    collector = _PictureCollector(name, pictures, find_picture)
    messages = [
        Message(message.role, tuple(map(collector.collect, message.parts)))
        if message.role != "assistant"
        else Message("assistant", (_answer(name, number, message),))
        for number, message in enumerate(parsed, 1)
    ]
    return messages, collector.finish()


def parse_document(
    name: str, value: Sequence[Any], pictures: Sequence[ExamplePicture], find_picture: FindPicture
) -> tuple[list[ContentPart], tuple[ExamplePicture, ...]]:
    """The parts of a document, written as the content of a message, and its pictures; see `parse_conversation`."""
    (message,) = _parse(name, [_with_sources({"role": "user", "content": list(value)})])
    if not any(isinstance(part, str) and part.strip() for part in message.parts):
        raise BadPrompt(f"{name} has no words in its text: fill it in, or leave the row out")
    collector = _PictureCollector(name, pictures, find_picture)
    return list(map(collector.collect, message.parts)), collector.finish()


def _parse(name: str, messages: Sequence[Any]) -> list[Message]:
    """The messages; no text is taken for a path. Raises BadPrompt with the name of the row."""
    try:
        return to_messages(messages, untrusted=True)
    except BadPrompt as error:
        raise BadPrompt(f"{name}: {error}") from None


def _with_sources(message: Any) -> Any:
    """A message as `to_messages` reads it: a picture part without a source has `NEXT_PICTURE`."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), (list, tuple)):
        return message
    return {**message, "content": [_with_source(part) for part in message["content"]]}


def _with_source(part: Any) -> Any:
    """A part of a message with a source, if it is a picture."""
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    given = [key for key in KEYS_BY_PART_TYPE["image"][:4] if part.get(key)]
    if not given:
        # Some data sets number the pictures of a row.
        return {key: value for key, value in part.items() if key != "index"} | {"image": NEXT_PICTURE}
    source = part[given[0]]
    if isinstance(source, Mapping):  # as Hugging Face's data sets store pictures
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    return {**part, given[0]: source}


def _check_answers(name: str, messages: Sequence[Message]) -> None:
    """Raises BadPrompt unless the conversation has answers to learn, the last message among them."""
    if not messages:
        raise BadPrompt(f"{name} has no messages: give a question and its answer")
    if messages[-1].role != "assistant":
        raise BadPrompt(
            f"{name}: the last message is the {messages[-1].role}'s, which has no answer: end with the assistant's"
        )
    if messages[0].role == "assistant":
        raise BadPrompt(
            f"{name}: the first message is the assistant's: begin with the user's, or the system's"
        )


def _answer(name: str, number: int, message: Message) -> str:
    """The text of an assistant's message, without the spaces around it, which no answer has."""
    if not all(isinstance(part, str) for part in message.parts):
        raise BadPrompt(f"{name}: message {number} is the assistant's and has a picture: give it text alone")
    text = "".join(map(str, message.parts)).strip()
    if not text:
        raise BadPrompt(f"{name}: message {number} is an empty answer: fill it in, or leave the row out")
    return check_text(name, f"message {number}", text)


class _PictureCollector:
    """Collects the pictures of parts in their order.

    Args:
        name: of the row.
        pictures: those of the row's own column, for parts without a source.
        find_picture: makes a picture of a source.
    """

    def __init__(self, name: str, pictures: Sequence[ExamplePicture], find_picture: FindPicture) -> None:
        self._name, self._find_picture = name, find_picture
        self._num_given, self._remaining = len(pictures), list(pictures)
        self._num_asked = 0
        self._collected: list[ExamplePicture] = []

    def collect(self, part: ContentPart) -> ContentPart:
        """A part with `PICTURE` in the place of a picture, which is collected."""
        if isinstance(part, str):
            return check_text(self._name, "text", part)
        if not isinstance(part, Picture):
            raise BadPrompt(f"{self._name} has a video: rows to learn from have pictures only")
        if part.source == NEXT_PICTURE:
            self._num_asked += 1
            found = self._remaining.pop(0) if self._remaining else None
        else:
            found = self._find_picture(part.source, self._name)
        if found is not None:
            self._collected.append(replace(found, picture=replace(part, source=PICTURE.source)))
        return PICTURE

    def finish(self) -> tuple[ExamplePicture, ...]:
        """The pictures; raises BadPrompt unless the row's own were all taken, and no part was left without one."""
        if self._num_asked != self._num_given:
            raise BadPrompt(
                f"{self._name}: of pictures, its columns have {self._num_given}, and its text places "
                f"{self._num_asked}: give as many"
            )
        return tuple(self._collected)
