"""Converts conversations between Gradio's chat format and the package's messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from idefics.errors import BadPrompt
from idefics.messages import ContentPart, Message, Picture
from idefics.page.uploaded_picture import UploadedPicture

# {"role": ..., "content": [{"type": "text", ...}, {"type": "file", ...}]}; the first turn has "metadata": {"id": ...}
ChatTurn = Mapping[str, Any]

# An invisible character that is inserted between "<" and a tag's name: Gradio shows a turn's text as HTML, and the
# browser would read `<text>` and `<code>` of DocTags as HTML tags. The page's script removes it from copied text.
WORD_JOINER = "\u2060"


def make_turn(role: str, text: str, pictures: Sequence[UploadedPicture] = ()) -> ChatTurn:
    """A turn in Gradio's format. A picture's name becomes its alternative text.

    The text comes first: Gradio cannot edit a turn that begins with a picture.
    """
    picture_parts = [{"type": "file", "file": upload.payload, "alt_text": upload.name} for upload in pictures]
    escaped_text = re.sub(r"<(?=[/!?a-zA-Z])", f"<{WORD_JOINER}", _remove_word_joiners(text))
    return {"role": role, "content": [{"type": "text", "text": escaped_text}, *picture_parts]}


def _remove_word_joiners(text: str) -> str:
    """Undoes the escaping of `make_turn`."""
    return text.replace(f"<{WORD_JOINER}", "<")


def turn_text(turn: ChatTurn) -> str:
    """The text of a turn, without word joiners."""
    return _remove_word_joiners(
        " ".join(str(part["text"]) for part in turn["content"] if part["type"] == "text")
    )


def turn_pictures(turn: ChatTurn) -> list[UploadedPicture]:
    """The uploaded pictures of a turn, in order."""
    return [UploadedPicture.from_payload(part["file"]) for part in turn["content"] if part["type"] == "file"]


def with_conversation_id(turns: Sequence[ChatTurn], conversation_id: str) -> list[ChatTurn]:
    """The turns with a conversation id, which is stored in the metadata of the first turn."""
    return [{**turns[0], "metadata": {"id": conversation_id}}, *turns[1:]] if turns else []


def get_or_create_conversation_id(turns: Sequence[ChatTurn]) -> str:
    """The id of a conversation; a new random one where it has none."""
    conversation_id = (turns[0].get("metadata") or {}).get("id") if turns else None
    return str(conversation_id or uuid4().hex)


def normalize_turns(turns: Sequence[ChatTurn] | None) -> list[ChatTurn]:
    """Turns from the browser, reduced to role, text, pictures and the conversation's id."""
    turns = turns or ()
    return with_conversation_id(
        [make_turn(turn["role"], turn_text(turn), turn_pictures(turn)) for turn in turns],
        get_or_create_conversation_id(turns),
    )


def make_user_turn(pictures: Sequence[UploadedPicture], text: str) -> ChatTurn:
    """A user's turn of pictures and text.

    Raises:
        BadPrompt: the text is empty.
    """
    if not text.strip():
        raise BadPrompt("the question is empty: write one, such as “What is in this image?”")
    return make_turn("user", text.strip(), pictures)


def turns_up_to_question(turns: Sequence[ChatTurn], index: int) -> list[ChatTurn]:
    """The turns up to the last user turn at or before `index`; empty if there is none."""
    remaining_turns = list(turns[: index + 1])
    while remaining_turns and remaining_turns[-1]["role"] != "user":
        remaining_turns.pop()
    return remaining_turns


def to_messages(
    turns: Sequence[ChatTurn], make_picture: Callable[[UploadedPicture], Picture]
) -> list[Message]:
    """The turns as messages, pictures before text; `make_picture` converts an uploaded picture."""
    message_list: list[Message] = []
    for turn in turns:
        parts: list[ContentPart] = [*map(make_picture, turn_pictures(turn)), turn_text(turn)]
        message_list.append(Message(turn["role"], tuple(parts)))
    return message_list
