"""What a sample is: scenes, and the turns of a conversation about them."""

from dataclasses import dataclass
from typing import Literal

from .scene import Scene


@dataclass(frozen=True)
class ConversationTurn:
    """One turn; a part is a text, or the number of a scene of the sample.

    An assistant's turn has one part, its answer. `answer_prefix` are words that the user put in its mouth: they stand
    before the answer, with a space between, and are not learned.
    """

    role: Literal["user", "assistant"]
    parts: tuple[str | int, ...]
    answer_prefix: str = ""
    is_target: bool = True


@dataclass(frozen=True)
class ConversationSample:
    """One training or evaluation example; a raw one has parts and a continuation, and no chat."""

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
