"""A conversation as the browser holds it, and as the model is given it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from idefics.errors import BadPrompt
from idefics.messages import ContentPart, Message, Picture
from idefics.page.uploaded_picture import UploadedPicture

# {"role": ..., "content": [{"type": "text", ...}, {"type": "file", ...}]}; the first has its "metadata": {"id": ...}
ChatTurn = Mapping[str, Any]

# Stands invisibly between "<" and the name of a tag: Gradio gives a turn's text to the browser as HTML, where `<text>`
# and `<code>` of a page in DocTags would be taken for tags. The page's script takes it out of what is copied.
WORD_JOINER = "\u2060"


def make_turn(role: str, text: str, pictures: Sequence[UploadedPicture] = ()) -> ChatTurn:
    """One turn, for the browser. The name of a picture is its alternative text.

    The words come first: Gradio cannot edit a turn that begins with a picture.
    """
    picture_parts = [
        {"type": "file", "file": upload.to_payload, "alt_text": upload.name} for upload in pictures
    ]
    escaped_text = re.sub(r"<(?=[/!?a-zA-Z])", f"<{WORD_JOINER}", _remove_word_joiners(text))
    return {"role": role, "content": [{"type": "text", "text": escaped_text}, *picture_parts]}


def _remove_word_joiners(text: str) -> str:
    return text.replace(f"<{WORD_JOINER}", "<")


def turn_text(turn: ChatTurn) -> str:
    """Its words."""
    return _remove_word_joiners(
        " ".join(str(part["text"]) for part in turn["content"] if part["type"] == "text")
    )


def turn_pictures(turn: ChatTurn) -> list[UploadedPicture]:
    """Its pictures."""
    return [UploadedPicture.from_payload(part["file"]) for part in turn["content"] if part["type"] == "file"]


def set_conversation_id(turns: Sequence[ChatTurn], conversation_id: str) -> list[ChatTurn]:
    """Turns of the conversation of this name, which the first of them carries wherever it goes."""
    return [{**turns[0], "metadata": {"id": conversation_id}}, *turns[1:]] if turns else []


def get_conversation_id(turns: Sequence[ChatTurn]) -> str:
    """The name of a conversation; a new one, where it has none yet."""
    conversation_id = (turns[0].get("metadata") or {}).get("id") if turns else None
    return str(conversation_id or uuid4().hex)


def normalize_turns(turns: Sequence[ChatTurn] | None) -> list[ChatTurn]:
    """Turns as they came back from a browser, without what it has added."""
    turns = turns or ()
    return set_conversation_id(
        [make_turn(turn["role"], turn_text(turn), turn_pictures(turn)) for turn in turns],
        get_conversation_id(turns),
    )


def make_user_turn(pictures: Sequence[UploadedPicture], text: str) -> ChatTurn:
    """What a person has put into the box.

    Raises:
        BadPrompt: no words.
    """
    if not text.strip():
        raise BadPrompt("the question is empty: write one, such as “What is in this image?”")
    return make_turn("user", text.strip(), pictures)


def up_to_last_question(turns: Sequence[ChatTurn], index: int) -> list[ChatTurn]:
    """The conversation up to the question at or before a place in it."""
    remaining_turns = list(turns[: index + 1])
    while remaining_turns and remaining_turns[-1]["role"] != "user":
        remaining_turns.pop()
    return remaining_turns


def to_messages(
    turns: Sequence[ChatTurn], make_picture: Callable[[UploadedPicture], Picture]
) -> list[Message]:
    """The turns for the model, pictures before words; `make_picture` opens, or names, what the browser has sent."""
    message_list: list[Message] = []
    for turn in turns:
        parts: list[ContentPart] = [*map(make_picture, turn_pictures(turn)), turn_text(turn)]
        message_list.append(Message(turn["role"], tuple(parts)))
    return message_list
