"""The arguments of calls that take prompts: in the form that the rest reads, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.calls import in_order, short, whole_characters
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Message
from idefics.prompt import Prompt


def several(name: str, given: Any, wanted: str) -> tuple[list[Any], bool]:
    """The prompts of a call, and whether it gave a list of them."""
    listed = in_order(name, given, wanted, error=BadPrompt)
    many = bool(listed) and isinstance(listed[0], (list, tuple))
    return (listed if many else [listed]), many


def is_conversation(items: Sequence[Any]) -> bool:
    """Whether a prompt is a list of messages."""
    return bool(items) and isinstance(items[0], (Message, Mapping))


def strings(name: str, given: object) -> tuple[str, ...]:
    """An argument that is one text or several, in whatever order."""
    listed = (
        [given]
        if isinstance(given, str)
        else in_order(name, given, "a text or a list of texts", unordered=True)
    )
    if not all(isinstance(one, str) for one in listed):
        raise BadSetting(f"{name} is {short(given)}; give a text or a list of texts")
    for text in listed:
        whole_characters(name, text)
    return tuple(listed)


def checked_prompt(prompt: object) -> Prompt:
    """A prompt that is ready, or a BadPrompt that says how one is made."""
    if isinstance(prompt, Prompt):
        return prompt
    raise BadPrompt(f"prompt is {short(prompt)}; make one with vlm.prompt([picture, text])")
