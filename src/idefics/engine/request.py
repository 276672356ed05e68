"""What is asked of the engine. Ids only: no text, no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from idefics.calls import in_range
from idefics.config import Sampling
from idefics.errors import BadSetting, RequestTimeout
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


class BeamGuide(Protocol):
    """Says before each step of a beam search which tokens may follow in each beam. It must not wait."""

    renormalizes: bool  # what is left of each beam's distribution adds up to 1 again

    def allowed_after(self, answer: Sequence[int]) -> tuple[bytes, bool]:
        """A bit for each id, lowest first; and whether the only one set is forced, at log-probability 0."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when the caller waits.

    Attributes:
        seconds: how long that was in all.
        at: the end, as `time.monotonic` counts.
    """

    seconds: float
    at: float

    @classmethod
    def of(cls, timeout: float | None) -> Deadline | None:
        """So many seconds from now; None: for ever.

        Raises:
            BadSetting: no number above 0.
        """
        if timeout is None:
            return None
        in_range("timeout", timeout, 1e-6, 1e9)
        return cls(timeout, time.monotonic() + timeout)

    @property
    def remaining(self) -> float:
        """Seconds, 0 where it has passed."""
        return max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Raises RequestTimeout where it has passed."""
        if not self.remaining:
            raise RequestTimeout(self.seconds)


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One prompt, and how to continue it or what to think of its endings.

    Attributes:
        prompt: ids and pictures.
        sampling: how the next token is chosen, and how many at most.
        stop_ids: ids that end the answer.
        banned_ids: ids that are never chosen.
        guide: says which ids may follow; for one answer only, and not for beams.
        beam_guide: the same for beams.
        watch: called by the engine's thread with each id as it is chosen, stop ids left out; true ends the answer
            there, as a stop string does. It must not wait for anything. Beams tell their ids when they have ended.
        deadline: an answer that is not done by then fails, waiting or running.
        endings: where there are any, nothing is generated: each is given its log-probabilities after the prompt.
    """

    prompt: Prompt
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    banned_ids: frozenset[int] = frozenset()
    watch: Callable[[int], bool] | None = None
    endings: tuple[Ending, ...] | None = None
    guide: Guide | None = None
    beam_guide: BeamGuide | None = None
    deadline: Deadline | None = None

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

    @property
    def figures(self) -> str:
        """What is asked, for the log, which shows nothing of what is said."""
        wanted = (
            f"up to {self.sampling.max_new_tokens} new ones"
            if self.endings is None
            else f"{len(self.endings)} endings"
        )
        return f"{len(self.prompt)} tokens, {len(self.prompt.pictures)} pictures, {wanted}"
