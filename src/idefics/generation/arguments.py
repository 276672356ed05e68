"""Checks and normalizes the arguments of calls that take prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.errors import BadPrompt, BadSetting
from idefics.generation.error_policy import ErrorPolicy
from idefics.messages import Message
from idefics.options import OnError
from idefics.prompt import Prompt
from idefics.validation import reject_lone_surrogates, short_repr, validate_list


def parse_prompts_argument(
    name: str, value: Any, expected: str, input_name: str, on_error: OnError, stream: bool
) -> tuple[list[Any], ErrorPolicy]:
    """Normalizes an argument that is one prompt or a list of prompts.

    Args:
        name: the argument's name, for error messages.
        value: the argument: one prompt (a list of items or messages) or a list of prompts.
        expected: what one prompt should be, for error messages.
        input_name: the word for one prompt, for error messages.
        on_error: the call's `on_error` argument.
        stream: the call's `stream` argument.

    Returns:
        The prompts, and how the call handles errors about one of them.

    Raises:
        BadPrompt: the argument is not a list.
        BadSetting: `on_error` or `stream` is wrong.
    """
    items = validate_list(name, value, expected, error_type=BadPrompt)
    is_batch = bool(items) and isinstance(items[0], (list, tuple))
    error_policy = ErrorPolicy(input_name, len(items) if is_batch else 0, on_error, stream)
    return (items if is_batch else [items]), error_policy


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
