"""What is asked of the engine. Ids only: no text, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from idefics.config import Sampling
from idefics.prompt import Prompt

Ending = Sequence[int]
GREEDY = Sampling()


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One prompt, and how to continue it or what to think of its endings.

    Attributes:
        prompt: ids and pictures.
        sampling: how the next token is chosen, and how many at most.
        stop_ids: ids that end the answer.
        banned_ids: ids that are never chosen.
        watch: called by the engine's thread with each id as it is chosen, stop ids left out; true ends the answer
            there, as a stop string does. It must not wait for anything. Beams tell their ids when they have ended.
        endings: where there are any, nothing is generated: each is given its log-probabilities after the prompt.
    """

    prompt: Prompt
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    banned_ids: frozenset[int] = frozenset()
    watch: Callable[[int], bool] | None = None
    endings: tuple[Ending, ...] | None = None

    @property
    def rows(self) -> int:
        """How many rows its answer takes at most."""
        return 1 if self.endings is not None else self.sampling.num_beams
