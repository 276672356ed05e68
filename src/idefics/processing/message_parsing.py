"""Parses conversations: `Message`s and the dicts of transformers and of OpenAI's API into `Message`s.

Unknown keys are refused by name, since a picture could be under a misspelled one. Independent of chat templates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import PIL.Image

from idefics.errors import BadPrompt, BadSetting, did_you_mean
from idefics.media_sources import BinaryFile, is_array_like, is_tensor
from idefics.messages import ContentPart, LiteralText, Message, Picture, Role, Video
from idefics.processing.fetch import BASE64_URI_PREFIX, is_data_uri
from idefics.processing.prompt_items import is_or_looks_like_file_name
from idefics.processing.video import to_picture_or_video
from idefics.validation import describe_type

ROLES = get_args(Role)
MESSAGE_KEYS = ("role", "content", "name")  # "name" labels the speaker, and changes nothing
KEYS_BY_PART_TYPE = {
    "text": ("text",),
    "image": ("image", "url", "path", "base64", "detail", "max_tiles"),
    "video": ("video", "url", "path"),
    "image_url": ("image_url", "detail", "max_tiles"),
}
IMAGE_URL_KEYS = ("url", "detail", "max_tiles", "format")  # of an "image_url"; "format" is ignored
COMMON_PART_KEYS = ("type", "cache_control")  # of every part
PICTURE_KEY_PREFIXES = (
    "image",
    "picture",
    "photo",
    "img",
    "file",
    "attachment",
    "media",
    "video",
    "url",
    "path",
)
FOREIGN_SOURCE_KEYS = (
    "data",
    "source",
    "b64",
    "b64_json",
    "bytes",
    "file",
)  # other APIs' names for a picture
PICTURE_TYPES = (bytes, bytearray, memoryview, os.PathLike, PIL.Image.Image, np.ndarray, BinaryFile)


def to_messages(messages: Sequence[Message | Mapping[str, Any]], *, untrusted: bool = False) -> list[Message]:
    """Parses a conversation in any notation into `Message`s.

    Args:
        messages: `Message`s or dicts. A dict has a "role" and a "content": a text, or a list of parts:
            `{"type": "text", "text": ...}`; `{"type": "image", "image": a picture}`, or with "url", "path" or "base64"
            instead; `{"type": "image_url", "image_url": {"url": ...}}` or the URL itself; and
            `{"type": "video", "video": a file or its frames}`, a "url" or a "path". A picture part or its `image_url`
            may also have "detail" and "max_tiles": see `ImageDetail`. A part may also be a text, a `Picture`, a
            `pathlib.Path` or anything else that `Picture` takes.
        untrusted: whether the messages are of an untrusted sender; then no path is checked.

    Raises:
        BadPrompt: something is wrong; the error names the message (counted from 1) and the key.
    """
    if isinstance(messages, (str, bytes, Mapping, Message)):
        raise BadPrompt(f"messages is {describe_type(messages)}: give a list of messages")
    return [
        _parse_message(message, f"message {number}", untrusted)
        for number, message in enumerate(messages, start=1)
    ]


def _parse_message(message: Message | Mapping[str, Any], where: str, untrusted: bool) -> Message:
    """Parses one message; `where` names it in errors."""
    if isinstance(message, Message):
        message = {"role": message.role, "content": message.parts}
    if not isinstance(message, Mapping):
        raise BadPrompt(f'{where} is {describe_type(message)}: give a dict with "role" and "content"')
    _reject_unknown_keys(message, MESSAGE_KEYS, where)
    role = _require_field(message, "role", where)
    if role not in ROLES:
        raise BadPrompt(f"{where}: role is {role!r}; give one of {', '.join(ROLES)}")
    content = _require_field(message, "content", where)
    if isinstance(content, str):
        return Message(role, (content,))
    if not isinstance(content, (list, tuple)):
        raise BadPrompt(f"{where}: content is {describe_type(content)}; give a string or a list of parts")
    if not content:
        raise BadPrompt(f"{where}: content is empty; give some text or a picture")
    parts = [_parse_part(part, f"{where}: content[{index}]", untrusted) for index, part in enumerate(content)]
    for index, part in enumerate(content if role == "user" and not untrusted else ()):
        # It would be read as words, and the answer would be invented.
        if isinstance(part, str) and not isinstance(part, LiteralText) and is_or_looks_like_file_name(part):
            raise BadPrompt(
                f"{where}: content[{index}] is {part[:100]!r}, the name of a file, and would be read as words: "
                f'for a picture give Picture({part[:100]!r}), for words {{"type": "text", "text": ...}}'
            )
    return Message(role, tuple(parts))


def _parse_part(part: Any, where: str, untrusted: bool) -> ContentPart:
    """Parses one part of a message's content; `where` names it in errors."""
    if isinstance(part, ContentPart):
        return part
    if isinstance(part, PICTURE_TYPES) or is_tensor(part) or is_array_like(part):
        return to_picture_or_video(part, untrusted=untrusted)
    if not isinstance(part, Mapping):
        raise BadPrompt(f'{where} is {describe_type(part)}: give a dict with a "type"')
    kind = _require_field(part, "type", where)
    if kind not in KEYS_BY_PART_TYPE:
        raise BadPrompt(f"{where}: type is {kind!r}; give one of {', '.join(KEYS_BY_PART_TYPE)}")
    _reject_unknown_keys(part, (*COMMON_PART_KEYS, *KEYS_BY_PART_TYPE[kind]), where)
    match kind:
        case "text":
            text = _require_field(part, "text", where)
            if not isinstance(text, str):
                raise BadPrompt(f"{where}: text is {describe_type(text)}; give a string")
            return text
        case "image":
            return _with_detail(
                Picture.of(_get_source(part, ("image", "url", "path", "base64"), where)), part, where
            )
        case "video":
            return Video.of(_get_source(part, ("video", "url", "path"), where))
        case _:
            address, name = _require_field(part, "image_url", where), f"{where}: image_url"
            if isinstance(address, str):
                address = {"url": address}
            picture = Picture.of(_require_field(address, "url", name))
            _reject_unknown_keys(address, IMAGE_URL_KEYS, name)
            return _with_detail(_with_detail(picture, part, where), address, name)


def _with_detail(picture: Picture, part: Mapping[str, Any], where: str) -> Picture:
    """The picture with the "detail" and "max_tiles" of its part, if it has them."""
    overrides = {name: part[name] for name in ("detail", "max_tiles") if part.get(name) is not None}
    try:
        return replace(picture, **overrides) if overrides else picture
    except BadSetting as error:
        raise BadPrompt(f"{where}: {error}") from None


def _get_source(part: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The value of the one key of `names` that a part has; base64 becomes a data URI.

    Raises:
        BadPrompt: the part has none of the keys or several; `where` names it.
    """
    keys_present = [name for name in names if not _is_empty_value(part.get(name))]
    if len(keys_present) != 1:
        listed = ", ".join(f'"{name}"' for name in keys_present or names)
        if keys_present:
            raise BadPrompt(f"{where} gives {listed}: one picture has one of them")
        raise BadPrompt(f"{where} has no {names[0]}: give one of {listed}")
    source = part[keys_present[0]]
    if keys_present[0] != "base64":
        return source
    text = source.decode("ascii", "replace") if isinstance(source, bytes) else source
    if not isinstance(text, str):
        raise BadPrompt(f"{where}: base64 is {describe_type(source)}; give a string")
    return text if is_data_uri(text) else f"{BASE64_URI_PREFIX}{text}"


def _reject_unknown_keys(mapping: Mapping[str, Any], allowed_keys: Sequence[str], where: str) -> None:
    """Raises BadPrompt if a dict has a key that is not allowed, unless its value is empty (`_is_empty_value`)."""
    for key, value in mapping.items():
        if key in allowed_keys or _is_empty_value(value):
            continue
        allowed_text = f"; known are {', '.join(allowed_keys)}"
        hint = did_you_mean([str(key)], allowed_keys)
        if allowed_keys is MESSAGE_KEYS and str(key).lower().startswith(PICTURE_KEY_PREFIXES):
            hint = ': put pictures into the content, as {"type": "image", "image": ...}'
        if "base64" in allowed_keys and key in FOREIGN_SOURCE_KEYS:
            hint = ': give the picture as "image", "url", "path" or "base64"'
        raise BadPrompt(f"{where} has the unknown key {key!r}{hint or allowed_text}")


def _is_empty_value(value: Any) -> bool:
    """Whether a key with this value counts as absent: rows of data sets have every key, also unused ones."""
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict, bool)) and not value)


def _require_field(mapping: Any, field: str, where: str) -> Any:
    """The value of a key; raises BadPrompt if `mapping` is no dict or lacks the key."""
    if not isinstance(mapping, Mapping) or field not in mapping:
        raise BadPrompt(f'{where} has no "{field}"')
    return mapping[field]
