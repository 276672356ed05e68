"""Conversations as people write them (`Message`s, the dicts of transformers and of OpenAI's API) into `Message`s.

A key that is not known is refused by name: what is ignored would be a picture left out, or an answer to something else.
Knows words, pictures and files by name; does not know templates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import PIL.Image

from idefics.calls import kind_of
from idefics.errors import BadPrompt, BadSetting, did_you_mean
from idefics.messages import Message, Part, Picture, Role, Text, Video
from idefics.processing.fetch import BARE_BASE64
from idefics.processing.prompt_items import names_file
from idefics.processing.video import as_visual
from idefics.sources import BinaryFile, is_array_like, is_tensor

ROLES = get_args(Role)
MESSAGE_KEYS = ("role", "content", "name")  # the last labels the speaker, and changes nothing
PART_KEYS = {
    "text": ("text",),
    "image": ("image", "url", "path", "base64", "detail", "max_tiles"),
    "video": ("video", "url", "path"),
    "image_url": ("image_url", "detail", "max_tiles"),
}
ADDRESS_KEYS = (
    "url",
    "detail",
    "max_tiles",
    "format",
)  # of an "image_url"; what format it has, the file says itself
LABELS = ("type", "cache_control")  # of every part
PICTURES = ("image", "picture", "photo", "img", "file", "attachment", "media", "video", "url", "path")
OTHER_SOURCES = ("data", "source", "b64", "b64_json", "bytes", "file")  # what other APIs call a picture
OBJECTS = (bytes, bytearray, memoryview, os.PathLike, PIL.Image.Image, np.ndarray, BinaryFile)


def to_messages(messages: Sequence[Message | Mapping[str, Any]], *, untrusted: bool = False) -> list[Message]:
    """A conversation in any notation as `Message`s.

    Args:
        messages: `Message`s or dicts. A dict has a "role" and a "content": a text, or a list of parts:
            `{"type": "text", "text": ...}`; `{"type": "image", "image": a picture}`, which may be a "url", "path" or
            "base64" as well; `{"type": "image_url", "image_url": {"url": ...}}` or the address itself; and
            `{"type": "video", "video": a file or its frames}`, a "url" or a "path". Beside the picture, or in the
            `image_url`, may stand "detail" and "max_tiles": see `ImageDetail`. A part may also be a text, a `Picture`,
            a `pathlib.Path` or anything else that a picture is made of.
        untrusted: the texts are of an untrusted sender: whether they name a file of this machine is not looked up.

    Raises:
        BadPrompt: names the message (counted from 1) and the key.
    """
    if isinstance(messages, (str, bytes, Mapping, Message)):
        raise BadPrompt(f"messages is {kind_of(messages)}: give a list of messages")
    return [
        _message(message, f"message {number}", untrusted) for number, message in enumerate(messages, start=1)
    ]


def _message(message: Message | Mapping[str, Any], where: str, untrusted: bool) -> Message:
    if isinstance(message, Message):
        message = {"role": message.role, "content": message.parts}
    if not isinstance(message, Mapping):
        raise BadPrompt(f'{where} is {kind_of(message)}: give a dict with "role" and "content"')
    _refuse_unknown(message, MESSAGE_KEYS, where)
    role = _field(message, "role", where)
    if role not in ROLES:
        raise BadPrompt(f"{where}: role is {role!r}; give one of {', '.join(ROLES)}")
    content = _field(message, "content", where)
    if isinstance(content, str):
        return Message(role, (content,))
    if not isinstance(content, (list, tuple)):
        given = "None" if content is None else f"a {type(content).__name__}"
        raise BadPrompt(f"{where}: content is {given}; give a string or a list of parts")
    if not content:
        raise BadPrompt(f"{where}: content is empty; give some text or a picture")
    parts = [_part(part, f"{where}: content[{index}]", untrusted) for index, part in enumerate(content)]
    if role == "user" and not untrusted:
        for index, part in enumerate(content):
            if isinstance(part, str) and not isinstance(part, Text):
                _refuse_path(part, f"{where}: content[{index}]")
    return Message(role, tuple(parts))


def _part(part: Any, where: str, untrusted: bool) -> Part:
    if isinstance(part, Part):
        return part
    if isinstance(part, OBJECTS) or is_tensor(part) or is_array_like(part):
        return as_visual(part, untrusted=untrusted)
    if not isinstance(part, Mapping):
        raise BadPrompt(f'{where} is {kind_of(part)}: give a dict with a "type"')
    kind = _field(part, "type", where)
    if kind not in PART_KEYS:
        raise BadPrompt(f"{where}: type is {kind!r}; give one of {', '.join(PART_KEYS)}")
    _refuse_unknown(part, (*LABELS, *PART_KEYS[kind]), where)
    match kind:
        case "text":
            text = _field(part, "text", where)
            if not isinstance(text, str):
                raise BadPrompt(f"{where}: text is {kind_of(text)}; give a string")
            return text
        case "image":
            return _seen(Picture.of(_source(part, ("image", "url", "path", "base64"), where)), part, where)
        case "video":
            return Video.of(_source(part, ("video", "url", "path"), where))
        case _:
            address, name = _field(part, "image_url", where), f"{where}: image_url"
            if isinstance(address, str):
                return _seen(Picture(address), part, where)
            url = _field(address, "url", name)
            _refuse_unknown(address, ADDRESS_KEYS, name)
            return _seen(_seen(Picture.of(url), part, where), address, name)


def _seen(picture: Picture, part: Mapping[str, Any], where: str) -> Picture:
    """With the "detail" and "max_tiles" that a part may say of its picture."""
    said = {name: part[name] for name in ("detail", "max_tiles") if part.get(name) is not None}
    try:
        return replace(picture, **said) if said else picture
    except BadSetting as error:
        raise BadPrompt(f"{where}: {error}") from None


def _source(part: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The one of some keys that is given."""
    given = [name for name in names if not _is_nothing(part.get(name))]
    if len(given) != 1:
        listed = ", ".join(f'"{name}"' for name in given or names)
        if given:
            raise BadPrompt(f"{where} gives {listed}: one picture has one of them")
        raise BadPrompt(f"{where} has no {names[0]}: give one of {listed}")
    source = part[given[0]]
    if given[0] != "base64":
        return source
    text = source.decode("ascii", "replace") if isinstance(source, bytes) else source
    if not isinstance(text, str):
        raise BadPrompt(f"{where}: base64 is {kind_of(source)}; give a string")
    return text if text[:5].lower() == "data:" else f"{BARE_BASE64}{text}"


def _refuse_unknown(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses a key that is not known, unless its value means nothing."""
    for key, value in mapping.items():
        if key in known or _is_nothing(value):
            continue
        listed = f"; known are {', '.join(known)}"
        near = did_you_mean([str(key)], known)
        if known is MESSAGE_KEYS and str(key).lower().startswith(PICTURES):
            near = ': put pictures into the content, as {"type": "image", "image": ...}'
        if "base64" in known and key in OTHER_SOURCES:
            near = ': give the picture as "image", "url", "path" or "base64"'
        raise BadPrompt(f"{where} has the unknown key {key!r}{near or listed}")


def _is_nothing(value: Any) -> bool:
    """Whether a key with this value is as good as no key: data sets fill all keys of all rows."""
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict, bool)) and not value)


def _refuse_path(text: str, where: str) -> None:
    """Refuses a text that names a file: it would be read as words, and an answer about it would be made up."""
    if names_file(text):
        raise BadPrompt(
            f"{where} is {text[:100]!r}, the name of a file, and would be read as words: for a picture give "
            f'Picture({text[:100]!r}), for words {{"type": "text", "text": ...}}'
        )


def _field(mapping: Any, field: str, where: str) -> Any:
    if not isinstance(mapping, Mapping) or field not in mapping:
        raise BadPrompt(f'{where} has no "{field}"')
    return mapping[field]
