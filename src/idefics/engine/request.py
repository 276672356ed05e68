"""What is asked of the engine. Ids only: no text, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.prompt import Prompt

Ending = Sequence[int]
GREEDY = Sampling()


class Guide(Protocol):
    """Says before each token of one answer which may follow. The engine's thread asks: it must not wait."""

    def allowed(self) -> bytes:
        """A bit for each of the model's ids, the lowest first; at least one of them is set."""
        ...

    def settle(self, id: int, room: int) -> int:
        """Told the id that was chosen, and how many may come after it: -> the id that is taken, mostly the same."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One prompt, and how to continue it or what to think of its endings.

    Attributes:
        prompt: ids and pictures.
        sampling: how the next token is chosen, and how many at most.
        stop_ids: ids that end the answer.
        banned_ids: ids that are never chosen.
        guide: says which ids may follow; for one answer only, and not for beams.
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
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if self.guide is not None and self.sampling.num_beams > 1:
            raise BadSetting(
                f"num_beams is {self.sampling.num_beams}, and beams know no regex, choices, schema or banned words: "
                "give num_beams=1, or leave these out"
            )

    @property
    def rows(self) -> int:
        """How many rows its answer takes at most."""
        return 1 if self.endings is not None else self.sampling.num_beams
