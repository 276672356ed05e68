"""Conversations as the guides write them, for templates: turns as they are, and the pictures among them.

Unlike `processing.chat`, a picture may be a bare place: the guides give the pictures themselves later.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from idefics.calls import kind_of
from idefics.compat.processing_places import VIDEO
from idefics.errors import BadPrompt

Turn = dict[str, Any]
SOURCES = ("url", "path", "base64")
Conversation = Sequence[Mapping[str, Any]]


def conversations_of(conversation: Conversation | Sequence[Conversation]) -> tuple[list[list[Turn]], bool]:
    """One conversation or a batch of them -> the turns of each, and whether it is a batch.

    Content becomes a list of parts, each with a "type", as every template of the family expects.

    Raises:
        BadPrompt: names the message (counted from 1) and what it lacks.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise BadPrompt(f"a conversation is {kind_of(conversation)}: give a list of messages")
    if not conversation:
        raise BadPrompt("the conversation is empty: give at least one message")
    is_batch = isinstance(conversation[0], (list, tuple))
    batch: Any = conversation if is_batch else [conversation]
    return [[_turn(turn, number) for number, turn in enumerate(one, start=1)] for one in batch], is_batch


def _turn(turn: Any, number: int) -> Turn:
    where = f"message {number}"
    if not isinstance(turn, Mapping):
        raise BadPrompt(f'{where} is {kind_of(turn)}: give a dict with "role" and "content"')
    for field in ("role", "content"):
        if field not in turn:
            raise BadPrompt(f'{where} has no "{field}"')
    content = [turn["content"]] if isinstance(turn["content"], str) else turn["content"]
    if not isinstance(content, (list, tuple)):
        raise BadPrompt(f"{where}: content is {kind_of(content)}; give a string or a list of parts")
    if not content:
        raise BadPrompt(f"{where}: content is empty; give some text or a picture")
    return {**turn, "content": [_part(part, f"{where}: content[{i}]") for i, part in enumerate(content)]}


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case {"type": "text", "text": str()} | {"type": "image"} | {"type": "video"}:
            return dict(part)
        case {"type": "image_url", "image_url": {"url": url}} | {"type": "image_url", "image_url": str(url)}:
            return {"type": "image", "url": url}
        case {"type": "text"}:
            raise BadPrompt(f"{where}: text is {kind_of(part.get('text'))}; give a string")
        case {"type": other}:
            raise BadPrompt(f"{where}: type is {other!r}; give one of text, image, video, image_url")
    raise BadPrompt(f'{where} is {kind_of(part)}: give a dict with a "type"')


def shown(turns: Sequence[Turn]) -> list[Turn]:
    """Turns as templates see them: a video is the text that marks its place, as most templates know none."""
    mark = {"type": "text", "text": VIDEO}
    return [
        {**turn, "content": [mark if part["type"] == "video" else part for part in turn["content"]]}
        for turn in turns
    ]


def sources_of(turns: Sequence[Turn], kind: str) -> list[Any]:
    """The pictures ("image") or videos ("video") that a conversation names, in order; bare places are left out."""
    parts = [part for turn in turns for part in turn["content"] if part["type"] == kind]
    named = ([_source(part, key) for key in (kind, *SOURCES) if part.get(key) is not None] for part in parts)
    return [sources[0] for sources in named if sources]


def _source(part: Mapping[str, Any], key: str) -> Any:
    source = part[key]
    is_bare = key == "base64" and isinstance(source, str) and not source.startswith("data:")
    return f"data:{part['type']}/*;base64,{source}" if is_bare else source


def split_options(template: str, keywords: Mapping[str, Any], words: Collection[str]) -> tuple[Turn, Turn]:
    """Keywords of `apply_chat_template` -> variables of the template, and options of the processor's call.

    Args:
        words: the options that the call has; a template may use one of these names for a variable.

    Raises:
        TypeError: one that is neither.
    """
    variables = {name: value for name, value in keywords.items() if re.search(rf"\b{name}\b", template)}
    options = {name: value for name, value in keywords.items() if name not in variables}
    if unknown := options.keys() - set(words):
        raise TypeError(
            f"{min(unknown)!r} is neither a variable of the chat template nor an option of the processor's call"
        )
    return variables, options
