"""Checks and normalizes the arguments of calls that take prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Message
from idefics.prompt import Prompt
from idefics.validation import reject_lone_surrogates, short_repr, validate_list


def as_prompt_list(name: str, value: Any, expected: str) -> tuple[list[Any], bool]:
    """Normalizes an argument that is one prompt or a list of prompts.

    Args:
        name: the argument's name, for error messages.
        value: the argument: one prompt (a list of items or messages) or a list of prompts.
        expected: what one prompt should be, for error messages.

    Returns:
        The prompts, and whether the caller gave a list of prompts.

    Raises:
        BadPrompt: the argument is not a list.
    """
    items = validate_list(name, value, expected, error_type=BadPrompt)
    is_batch = bool(items) and isinstance(items[0], (list, tuple))
    return (items if is_batch else [items]), is_batch


def is_conversation(items: Sequence[Any]) -> bool:
    """Returns whether a prompt is a list of messages, not of text and pictures."""
    return bool(items) and isinstance(items[0], (Message, Mapping))


def as_string_tuple(name: str, value: object) -> tuple[str, ...]:
    """Normalizes an argument that is one string or a collection of strings, sets included.

    Raises:
        BadSetting: it is anything else.
        BadPrompt: a string has a lone surrogate.
    """
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
    """Returns the argument if it is a `Prompt`.

    Raises:
        BadPrompt: it is anything else; the message says how to make one.
    """
    if isinstance(prompt, Prompt):
        return prompt
    raise BadPrompt(f"prompt is {short_repr(prompt)}; make one with vlm.prompt([picture, text])")
