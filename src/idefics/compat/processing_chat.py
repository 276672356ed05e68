"""Conversations of the guides: checked and normalised for chat templates, and the images and videos in them.

Unlike in `processing.chat_prompt`, an image may have no source: it is then given in a later call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.compat.media_placeholders import VIDEO_TOKEN
from idefics.compat.tokenization import Conversations
from idefics.errors import BadPrompt
from idefics.validation import describe_type

ChatTurn = dict[str, Any]
SOURCE_KEYS = ("url", "path", "base64")


def parse_conversations(
    conversation: Conversations,
) -> tuple[list[list[ChatTurn]], bool]:
    """The turns of a conversation or of each conversation of a batch, and whether it is a batch.

    The content of a turn becomes a list of parts, each with a "type", as the templates expect.

    Raises:
        BadPrompt: a message is malformed; the error has its number, counted from 1.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise BadPrompt(f"a conversation is {describe_type(conversation)}: give a list of messages")
    if not conversation:
        raise BadPrompt("the conversation is empty: give at least one message")
    is_batch = isinstance(conversation[0], (list, tuple))
    batch: Any = conversation if is_batch else [conversation]
    return [
        [_parse_turn(turn, number) for number, turn in enumerate(one, start=1)] for one in batch
    ], is_batch


def _parse_turn(turn: Any, message_number: int) -> ChatTurn:
    location = f"message {message_number}"
    if not isinstance(turn, Mapping):
        raise BadPrompt(f'{location} is {describe_type(turn)}: give a dict with "role" and "content"')
    for field in ("role", "content"):
        if field not in turn:
            raise BadPrompt(f'{location} has no "{field}"')
    content = [turn["content"]] if isinstance(turn["content"], str) else turn["content"]
    if not isinstance(content, (list, tuple)):
        raise BadPrompt(f"{location}: content is {describe_type(content)}; give a string or a list of parts")
    if not content:
        raise BadPrompt(f"{location}: content is empty; give some text or a picture")
    return {
        **turn,
        "content": [_parse_part(part, f"{location}: content[{i}]") for i, part in enumerate(content)],
    }


def _parse_part(part: Any, location: str) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case {"type": "image" | "video" as kind, "base64": str(data)} if not data.startswith("data:"):
            return {**part, "base64": f"data:{kind}/*;base64,{data}"}
        case {"type": "text", "text": str()} | {"type": "image"} | {"type": "video"}:
            return dict(part)
        case {"type": "image_url", "image_url": {"url": url}} | {"type": "image_url", "image_url": str(url)}:
            return {"type": "image", "url": url}
        case {"type": "text"}:
            raise BadPrompt(f"{location}: text is {describe_type(part.get('text'))}; give a string")
        case {"type": other}:
            raise BadPrompt(f"{location}: type is {other!r}; give one of text, image, video, image_url")
    raise BadPrompt(f'{location} is {describe_type(part)}: give a dict with a "type"')


def replace_videos_by_text(turns: Sequence[ChatTurn]) -> list[ChatTurn]:
    """Turns in which a video is its placeholder as text, as most templates have no videos."""
    video_placeholder = {"type": "text", "text": VIDEO_TOKEN}
    return [
        {
            **turn,
            "content": [video_placeholder if part["type"] == "video" else part for part in turn["content"]],
        }
        for turn in turns
    ]


def media_sources(turns: Sequence[ChatTurn], part_type: str) -> list[Any]:
    """The sources of the images ("image") or videos ("video") of a conversation, in order, where they have one."""
    parts = [part for turn in turns for part in turn["content"] if part["type"] == part_type]
    named = ([part[key] for key in (part_type, *SOURCE_KEYS) if part.get(key) is not None] for part in parts)
    return [sources[0] for sources in named if sources]
