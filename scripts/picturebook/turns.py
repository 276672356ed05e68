"""What a sample is: scenes, and the turns of a conversation about them."""

from dataclasses import dataclass
from typing import Literal

from .scene import Scene


@dataclass(frozen=True)
class Turn:
    """One turn; a part is a text, or the number of a scene of the sample.

    An assistant's turn has one part, its answer. `given` are words that the user put in its mouth: they stand
    before the answer, with a space between, and are not learned.
    """

    role: Literal["user", "assistant"]
    parts: tuple[str | int, ...]
    given: str = ""
    learn: bool = True


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example; a raw one has parts and a continuation, and no chat."""

    kind: str
    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]
    raw: bool = False


def user(*parts: str | int) -> Turn:
    """A user's turn."""
    return Turn("user", parts)


def assistant(answer: str, given: str = "", learn: bool = True) -> Turn:
    """An assistant's turn."""
    return Turn("assistant", (answer,), given, learn)
