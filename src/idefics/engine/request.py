"""What is asked of the engine. Ids only: no text, no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from idefics.config import Sampling
from idefics.errors import BadSetting, RequestTimeout
from idefics.prompt import Prompt
from idefics.validation import validate_range

Continuation = Sequence[int]
GREEDY = Sampling()


class TokenConstraint(Protocol):
    """Says before each token of one answer which may follow. The engine's thread asks: it must not wait."""

    def compute_token_bitmask(self) -> bytes:
        """A bit for each of the model's ids, the lowest first; at least one of them is set."""
        ...

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Told the id that was chosen, and how many may come after it: -> the id that is taken, mostly the same."""
        ...


class BeamConstraint(Protocol):
    """Says before each step of a beam search which tokens may follow in each beam. It must not wait."""

    is_renormalized: bool  # what is left of each beam's distribution adds up to 1 again

    def compute_beam_bitmask(self, generated_ids: Sequence[int]) -> tuple[bytes, bool]:
        """A bit for each id, lowest first; and whether the only one set is forced, at log-probability 0."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when the caller waits.

    Attributes:
        timeout: how long that was in all.
        expires_at: the end, as `time.monotonic` counts.
    """

    timeout: float
    expires_at: float

    @classmethod
    def from_timeout(cls, timeout: float | None) -> Deadline | None:
        """So many seconds from now; None: for ever.

        Raises:
            BadSetting: no number above 0.
        """
        if timeout is None:
            return None
        validate_range("timeout", timeout, 1e-6, 1e9)
        return cls(timeout, time.monotonic() + timeout)

    @property
    def remaining_seconds(self) -> float:
        """Seconds, 0 where it has passed."""
        return max(0.0, self.expires_at - time.monotonic())

    def raise_if_expired(self) -> None:
        """Raises RequestTimeout where it has passed."""
        if not self.remaining_seconds:
            raise RequestTimeout(self.timeout)


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One prompt, and how to continue it or what to think of its endings.

    Attributes:
        prompt: ids and pictures.
        sampling: how the next token is chosen, and how many at most.
        stop_ids: ids that end the answer.
        banned_ids: ids that are never chosen.
        constraint: says which ids may follow; for one answer only, and not for beams.
        beam_constraint: the same for beams.
        on_token: called by the engine's thread with each id as it is chosen, stop ids left out; true ends the answer
            there, as a stop string does. It must not wait for anything. Beams tell their ids when they have ended.
        deadline: an answer that is not done by then fails, waiting or running.
        continuations: where there are any, nothing is generated: each is given its log-probabilities after the prompt.
    """

    prompt: Prompt
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    banned_ids: frozenset[int] = frozenset()
    on_token: Callable[[int], bool] | None = None
    continuations: tuple[Continuation, ...] | None = None
    constraint: TokenConstraint | None = None
    beam_constraint: BeamConstraint | None = None
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and self.sampling.num_beams > 1:
            raise BadSetting(
                f"num_beams is {self.sampling.num_beams}, and beams know no regex, choices, schema or banned words: "
                "give num_beams=1, or leave these out"
            )

    @property
    def num_sequences(self) -> int:
        """How many rows its answer takes at most."""
        return 1 if self.continuations is not None else self.sampling.num_beams

    @property
    def log_summary(self) -> str:
        """What is asked, for the log, which shows nothing of what is said."""
        work_summary = (
            f"up to {self.sampling.max_new_tokens} new ones"
            if self.continuations is None
            else f"{len(self.continuations)} endings"
        )
        return f"{len(self.prompt)} tokens, {len(self.prompt.pictures)} pictures, {work_summary}"
