"""Conversations of the guides: checked and normalised for chat templates, and the images and videos in them.

Unlike in `processing.chat_prompt`, an image may have no source: it is then given in a later call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from idefics.compat.media_inputs import VIDEO_TOKEN
from idefics.compat.tokenization import Conversations
from idefics.errors import BadPrompt
from idefics.validation import describe_type

SOURCE_KEYS = ("url", "path", "base64")
VIDEO_PART = {"type": "text", "text": VIDEO_TOKEN}


class ParsedConversation(NamedTuple):
    """A conversation as chat templates expect it, and the sources of its media, in order, where they are named.

    Attributes:
        turns: each with a list of parts, which have a "type"; a video is text, as most templates have no videos.
        media: the sources under "images" and "videos".
    """

    turns: list[dict[str, Any]]
    media: dict[str, list[Any]]


def parse_conversations(conversation: Conversations) -> tuple[list[ParsedConversation], bool]:
    """Parses a conversation or each conversation of a batch. Returns them, and whether it is a batch.

    Raises:
        BadPrompt: a message is malformed; the error has its number, counted from 1.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise BadPrompt(f"a conversation is {describe_type(conversation)}: give a list of messages")
    if not conversation:
        raise BadPrompt("the conversation is empty: give at least one message")
    is_batch = isinstance(conversation[0], (list, tuple))
    batch: Any = conversation if is_batch else [conversation]
    return [_parse_conversation(messages) for messages in batch], is_batch


def add_media(options: dict[str, Any], conversations: Sequence[ParsedConversation]) -> None:
    """Adds the images and videos of messages to the arguments of a call, as `images` and `videos`.

    Raises:
        BadPrompt: there are some in the messages and in the arguments.
    """
    for name in ("images", "videos"):
        sources = [one.media[name] for one in conversations]
        if any(sources) and name in options:
            raise BadPrompt(
                f"there are {name} in the messages and in {name}=...: give them in one of the two"
            )
        if any(sources) or (name == "images" and name not in options):
            options[name] = sources


def _parse_conversation(messages: Sequence[Any]) -> ParsedConversation:
    """Parses the messages of one conversation; raises BadPrompt, which names the message, if one is malformed."""
    parsed = ParsedConversation([], {"images": [], "videos": []})
    for number, message in enumerate(messages, start=1):
        parts = _parse_content(message, f"message {number}")
        for part in parts:
            keys = (part["type"], *SOURCE_KEYS)
            source = next((part[key] for key in keys if part.get(key) is not None), None)
            if source is not None and part["type"] != "text":
                parsed.media[f"{part['type']}s"].append(source)
        content = [VIDEO_PART if part["type"] == "video" else part for part in parts]
        parsed.turns.append({**message, "content": content})
    return parsed


def _parse_content(message: Any, location: str) -> list[dict[str, Any]]:
    """The content of a message as a list of parts; `location` names the message in a BadPrompt."""
    if not isinstance(message, Mapping):
        raise BadPrompt(f'{location} is {describe_type(message)}: give a dict with "role" and "content"')
    for field in ("role", "content"):
        if field not in message:
            raise BadPrompt(f'{location} has no "{field}"')
    content = [message["content"]] if isinstance(message["content"], str) else message["content"]
    if not isinstance(content, (list, tuple)):
        raise BadPrompt(f"{location}: content is {describe_type(content)}; give a string or a list of parts")
    if not content:
        raise BadPrompt(f"{location}: content is empty; give some text or a picture")
    return [_parse_part(part, f"{location}: content[{index}]") for index, part in enumerate(content)]


def _parse_part(part: Any, location: str) -> dict[str, Any]:
    """A part of a message as a dict with "type" text, image or video; `location` names the part in a BadPrompt."""
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
