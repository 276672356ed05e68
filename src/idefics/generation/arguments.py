"""The arguments of calls that take prompts: in the form that the rest reads, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Message
from idefics.prompt import Prompt
from idefics.validation import reject_lone_surrogates, short_repr, validate_list


def as_prompt_list(name: str, value: Any, expected: str) -> tuple[list[Any], bool]:
    """The prompts of a call, and whether it gave a list of them."""
    items = validate_list(name, value, expected, error_type=BadPrompt)
    is_batch = bool(items) and isinstance(items[0], (list, tuple))
    return (items if is_batch else [items]), is_batch


def is_conversation(items: Sequence[Any]) -> bool:
    """Whether a prompt is a list of messages."""
    return bool(items) and isinstance(items[0], (Message, Mapping))


def as_string_tuple(name: str, value: object) -> tuple[str, ...]:
    """An argument that is one text or several, in whatever order."""
    texts = (
        [value]
        if isinstance(value, str)
        else validate_list(name, value, "a text or a list of texts", allow_set=True)
    )
    if not all(isinstance(one, str) for one in texts):
        raise BadSetting(f"{name} is {short_repr(value)}; give a text or a list of texts")
    for text in texts:
        reject_lone_surrogates(name, text)
    return tuple(texts)


def require_prompt(prompt: object) -> Prompt:
    """A prompt that is ready, or a BadPrompt that says how one is made."""
    if isinstance(prompt, Prompt):
        return prompt
    raise BadPrompt(f"prompt is {short_repr(prompt)}; make one with vlm.prompt([picture, text])")
