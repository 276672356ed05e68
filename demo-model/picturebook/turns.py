"""The data types of a sample: scenes, and the turns of a conversation about them."""

from dataclasses import dataclass
from typing import Literal

from .scene import Scene


@dataclass(frozen=True)
class ConversationTurn:
    """One turn; a part is a text, or the number of a scene of the sample.

    An assistant's turn has one part, its answer. `answer_prefix` is given by the user: it precedes the answer, with a
    space between, and is no target of the loss.
    """

    role: Literal["user", "assistant"]
    parts: tuple[str | int, ...]
    answer_prefix: str = ""
    is_target: bool = True


@dataclass(frozen=True)
class ConversationSample:
    """One training or evaluation example: a conversation, or a raw prompt and its continuation."""

    kind: str
    scenes: tuple[Scene, ...]
    turns: tuple[ConversationTurn, ...]
    is_raw_prompt: bool = False


def user_turn(*parts: str | int) -> ConversationTurn:
    """A user's turn."""
    return ConversationTurn("user", parts)


def assistant_turn(answer: str, answer_prefix: str = "", is_target: bool = True) -> ConversationTurn:
    """An assistant's turn."""
    return ConversationTurn("assistant", (answer,), answer_prefix, is_target)
