"""A conversation as the browser holds it, and as the model is given it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from idefics.errors import BadPrompt
from idefics.messages import Message, Part, Picture
from idefics.ui.given import Given

# {"role": ..., "content": [{"type": "text", ...}, {"type": "file", ...}]}; the first has its "metadata": {"id": ...}
Turn = Mapping[str, Any]

# Stands invisibly between "<" and the name of a tag: Gradio gives a turn's text to the browser as HTML, where `<text>`
# and `<code>` of a page in DocTags would be taken for tags. The page's script takes it out of what is copied.
WORD_JOINER = "\u2060"


def said(role: str, text: str, pictures: Sequence[Given] = ()) -> Turn:
    """One turn, for the browser. The name of a picture is its alternative text.

    The words come first: Gradio cannot edit a turn that begins with a picture.
    """
    seen = [{"type": "file", "file": given.payload, "alt_text": given.name} for given in pictures]
    shown = re.sub(r"<(?=[/!?a-zA-Z])", f"<{WORD_JOINER}", _plain(text))
    return {"role": role, "content": [{"type": "text", "text": shown}, *seen]}


def _plain(text: str) -> str:
    return text.replace(f"<{WORD_JOINER}", "<")


def text_of(turn: Turn) -> str:
    """Its words."""
    return _plain(" ".join(str(part["text"]) for part in turn["content"] if part["type"] == "text"))


def pictures_of(turn: Turn) -> list[Given]:
    """Its pictures."""
    return [Given.of(part["file"]) for part in turn["content"] if part["type"] == "file"]


def named(turns: Sequence[Turn], name: str) -> list[Turn]:
    """Turns of the conversation of this name, which the first of them carries wherever it goes."""
    return [{**turns[0], "metadata": {"id": name}}, *turns[1:]] if turns else []


def name_of(turns: Sequence[Turn]) -> str:
    """The name of a conversation; a new one, where it has none yet."""
    known = (turns[0].get("metadata") or {}).get("id") if turns else None
    return str(known or uuid4().hex)


def cleaned(turns: Sequence[Turn] | None) -> list[Turn]:
    """Turns as they came back from a browser, without what it has added."""
    turns = turns or ()
    return named([said(turn["role"], text_of(turn), pictures_of(turn)) for turn in turns], name_of(turns))


def question(pictures: Sequence[Given], text: str) -> Turn:
    """What a person has put into the box.

    Raises:
        BadPrompt: no words.
    """
    if not text.strip():
        raise BadPrompt("the question is empty: write one, such as “What is in this image?”")
    return said("user", text.strip(), pictures)


def until_asked(turns: Sequence[Turn], index: int) -> list[Turn]:
    """The conversation up to the question at or before a place in it."""
    kept = list(turns[: index + 1])
    while kept and kept[-1]["role"] != "user":
        kept.pop()
    return kept


def messages(turns: Sequence[Turn], picture: Callable[[Given], Picture]) -> list[Message]:
    """The turns for the model, pictures before words; `picture` opens, or names, what the browser has sent."""
    found: list[Message] = []
    for turn in turns:
        parts: list[Part] = [*map(picture, pictures_of(turn)), text_of(turn)]
        found.append(Message(turn["role"], tuple(parts)))
    return found
