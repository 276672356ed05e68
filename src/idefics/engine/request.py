"""Requests to the engine and the constraints they may carry. Token ids only: no text, no tensors."""

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
    """Restricts the next token of one sequence. Called by the engine's thread: it must not block."""

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids: one bit for each id of the vocabulary, the lowest id first; at least one is set."""
        ...

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by one token.

        Args:
            id: the sampled id.
            max_remaining_tokens: how many tokens may still follow it.

        Returns:
            The id to append: usually `id`, or another one, for instance to complete the structure within the limit.
        """
        ...


class BeamConstraint(Protocol):
    """Restricts the next token of each beam. Called by the engine's thread: it must not block.

    Attributes:
        is_renormalized: whether the probabilities of the allowed tokens of a beam are scaled to add up to 1.
    """

    is_renormalized: bool

    def compute_beam_bitmask(self, generated_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The allowed next ids of one beam.

        Args:
            generated_ids: the beam's ids after the prompt.

        Returns:
            One bit for each id of the vocabulary, the lowest id first; and whether the only allowed id is forced, which
            gives it log-probability 0.
        """
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time by which a request must be done, else it fails with RequestTimeout.

    Attributes:
        timeout: the seconds that the caller allowed.
        expires_at: the deadline, in seconds of `time.monotonic`.
    """

    timeout: float
    expires_at: float

    @classmethod
    def from_timeout(cls, timeout: float | None) -> Deadline | None:
        """A deadline `timeout` seconds from now; None if `timeout` is None.

        Raises:
            BadSetting: `timeout` is not a number above 0.
        """
        if timeout is None:
            return None
        validate_range("timeout", timeout, 1e-6, 1e9)
        return cls(timeout, time.monotonic() + timeout)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self.expires_at - time.monotonic())

    def raise_if_expired(self) -> None:
        """Raises RequestTimeout if the deadline has passed."""
        if not self.remaining_seconds:
            raise RequestTimeout(self.timeout)


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """The immutable input of one request: a prompt to continue, or given continuations of it to score.

    Attributes:
        prompt: token ids and preprocessed images.
        sampling: sampling parameters and `max_new_tokens`.
        stop_ids: ids that end the answer; they are not part of it.
        banned_ids: ids that are never sampled.
        on_token: called by the engine's thread with each new id, stop ids left out; if it returns true, the answer ends
            with this id (as for a stop string). It must not block. With beams it is called once the search is done.
        continuations: if given, nothing is generated: the log-probability of each token of each is computed.
        constraint: restricts the ids of an answer without beams.
        beam_constraint: restricts the ids of a beam search.
        deadline: the request fails with RequestTimeout if it is not done by then, whether it waits or runs.
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
                f"num_beams is {self.sampling.num_beams}, but beam search does not support regex, choices, schema or "
                "banned words: use num_beams=1, or leave these out"
            )

    @property
    def num_sequences(self) -> int:
        """How many sequences it may run at once: `num_beams`, or 1 for scoring."""
        return 1 if self.continuations is not None else self.sampling.num_beams

    @property
    def is_sampled(self) -> bool:
        """Whether its answer is sampled token by token, without beam search or scoring."""
        return self.continuations is None and self.sampling.num_beams == 1

    @property
    def log_summary(self) -> str:
        """The request's number of tokens and pictures as text for the log, which never shows content."""
        work_summary = (
            f"up to {self.sampling.max_new_tokens} new tokens"
            if self.continuations is None
            else f"{len(self.continuations)} continuations"
        )
        return f"{len(self.prompt)} tokens, {len(self.prompt.pictures)} pictures, {work_summary}"
