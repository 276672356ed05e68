"""What is asked of the engine, and the answer as it grows. Ids only: no text, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from idefics.config import Sampling
from idefics.messages import Finish
from idefics.prompt import Prompt


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        prompt: ids and pictures.
        sampling: how the next token is chosen, and how many at most.
        stop_ids: ids that end the answer.
        banned_ids: ids that are never chosen.
    """

    prompt: Prompt
    sampling: Sampling
    stop_ids: frozenset[int] = frozenset()
    banned_ids: frozenset[int] = frozenset()


class Sequence:
    """A row being answered. The engine writes it; the caller reads it, and may `finish` it between steps.

    Attributes:
        request: what was asked.
        ids: what has been generated so far; a stop id is never among them.
        logprobs: natural-log probability of each of `ids` if `sampling.logprobs` asks for them; else empty.
        finish_reason: why the answer ended, or None while it goes on.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: Finish | None = None

    def finish(self, reason: Finish) -> None:
        """Ends the answer, or corrects why it ended: a stop string may stand in the last token allowed."""
        self.finish_reason = reason
