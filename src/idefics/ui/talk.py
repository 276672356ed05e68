"""A conversation as the browser holds it, and as the model is given it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from idefics.errors import BadPrompt
from idefics.messages import Message, Part, Picture
from idefics.ui.given import Given

Turn = Mapping[str, Any]  # {"role": ..., "content": [{"type": "text", ...} or {"type": "file", ...}]}


def said(role: str, *parts: str | Given) -> Turn:
    """One turn, for the browser. The name of a picture is its alternative text."""
    return {"role": role, "content": [_content(part) for part in parts]}


def _content(part: str | Given) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "file", "file": part.payload, "alt_text": part.name}


def cleaned(turns: Sequence[Turn] | None) -> list[Turn]:
    """Turns as they came back from a browser, without what it has added."""
    return [said(turn["role"], *_parts(turn)) for turn in turns or ()]


def _parts(turn: Turn) -> Iterator[str | Given]:
    for part in turn["content"]:
        yield Given.of(part["file"]) if part["type"] == "file" else str(part["text"])


def text_of(turn: Turn) -> str:
    """Its words."""
    return " ".join(part for part in _parts(turn) if isinstance(part, str))


def pictures_of(turn: Turn) -> list[Given]:
    """Its pictures."""
    return [part for part in _parts(turn) if isinstance(part, Given)]


def question(pictures: Sequence[Given], text: str) -> Turn:
    """What a person has put into the box: pictures, then words.

    Raises:
        BadPrompt: no words.
    """
    if not text.strip():
        raise BadPrompt("the question is empty: write one, such as “What is in this image?”")
    return said("user", *pictures, text.strip())


def until_asked(turns: Sequence[Turn], index: int) -> list[Turn]:
    """The conversation up to the question at or before a place in it."""
    kept = list(turns[: index + 1])
    while kept and kept[-1]["role"] != "user":
        kept.pop()
    return kept


def messages(turns: Sequence[Turn], picture: Callable[[Given], Picture]) -> list[Message]:
    """The turns for the model; `picture` opens, or names, what the browser has sent."""
    found: list[Message] = []
    for turn in turns:
        parts: list[Part] = [part if isinstance(part, str) else picture(part) for part in _parts(turn)]
        found.append(Message(turn["role"], tuple(parts)))
    return found
