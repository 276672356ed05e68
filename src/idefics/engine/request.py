"""Requests to the engine and the constraints they may carry. Token ids only: no text, no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, Protocol

from idefics.config import KVCacheLayout, Sampling
from idefics.errors import BadPrompt, BadSetting, PromptTooLong, RequestTimeout
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
            The id to append: `id`, or one that replaces it, for instance to complete the structure within the limit.
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


ProgressStage = Literal["pictures", "queued", "tiles", "prompt", "passes"]


class RequestProgress(NamedTuple):
    """How far a request is that has no token yet.

    Attributes:
        stage: "pictures": they are opened and preprocessed; "queued": the request waits; "tiles": they go through the
            vision tower; "prompt": its tokens are computed; "passes": those of an explanation.
        done, total: how many of the stage are done, and how many there are in all. Of "queued" the total is the number
            of requests that wait before this one, and none is done.
    """

    stage: ProgressStage
    done: int
    total: int


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
        on_progress: called by the engine's thread while the request waits and its prompt is computed, in steps of a few
            tiles; the last call is the one with all prompt tokens. It must not block.
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
    on_progress: Callable[[RequestProgress], None] | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and self.sampling.num_beams > 1:
            raise BadSetting(
                f"num_beams is {self.sampling.num_beams}, but beam search does not support regex, choices, schema or "
                "banned words: use num_beams=1, or leave these out"
            )

    @property
    def num_sequences(self) -> int:
        """How many sequences the request may run at once: `num_beams`, or 1 for scoring."""
        return 1 if self.continuations is not None else self.sampling.num_beams

    @property
    def is_sampled(self) -> bool:
        """Whether the request generates one sequence token by token, greedily too: no beam search, no scoring."""
        return self.continuations is None and self.sampling.num_beams == 1

    @property
    def log_summary(self) -> str:
        """A text for the log: the request's numbers of tokens and pictures, without texts or ids."""
        work_summary = (
            f"up to {self.sampling.max_new_tokens} new tokens"
            if self.continuations is None
            else f"{len(self.continuations)} continuations"
        )
        return f"{len(self.prompt)} tokens, {len(self.prompt.pictures)} pictures, {work_summary}"


def validate_request(request: Request, layout: KVCacheLayout) -> int:
    """Checks the prompt, the continuations and `logit_bias` of a request.

    Returns:
        The maximum number of tokens to generate: 0 if continuations are scored.

    Raises:
        PromptTooLong: prompt and answer, or the longest continuation, do not fit into the model's positions.
        BadPrompt: the prompt is empty, or it or a continuation has an id that the model does not have.
        BadSetting: `logit_bias` has such an id.
    """
    continuations, biases = request.continuations, request.sampling.logit_bias
    if biases and (highest := max(biases)) >= layout.vocab_size:
        raise BadSetting(
            f"logit_bias names token {highest}; this model's tokens are 0 to {layout.vocab_size - 1}"
        )
    if continuations is None:
        return compute_max_new_tokens(request.prompt, request.sampling, layout)
    num_new_tokens = max(map(len, continuations), default=0)
    validate_prompt(request.prompt, layout, num_new_tokens, chain.from_iterable(continuations))
    return 0


def validate_prompt(
    prompt: Prompt, layout: KVCacheLayout, num_new_tokens: int, continuation_ids: Iterable[int] = ()
) -> None:
    """Checks that a prompt is not empty, leaves `num_new_tokens` positions, and has only ids of the vocabulary.

    Args:
        continuation_ids: further ids to check.

    Raises:
        PromptTooLong: it leaves fewer than `num_new_tokens` positions.
        BadPrompt: it is empty, or it or `continuation_ids` has an id that the model does not have.
    """
    if not prompt.ids:
        raise BadPrompt("the prompt is empty: give text, pictures or both")
    if len(prompt) + num_new_tokens > layout.max_positions:
        raise PromptTooLong(len(prompt), layout.max_positions - num_new_tokens, len(prompt.pictures))
    max_id = max(chain(prompt.ids, continuation_ids))
    if (
        max_id >= layout.vocab_size
    ):  # on a GPU the lookup would make the device unusable for the whole process
        raise BadPrompt(
            f"the prompt has token {max_id}, but this model's tokens are 0 to {layout.vocab_size - 1}: "
            "leave it out, or use the tokenizer of the same checkpoint"
        )


def compute_max_new_tokens(prompt: Prompt, sampling: Sampling, layout: KVCacheLayout) -> int:
    """The maximum number of tokens that can be generated after a prompt: at least one.

    Raises:
        PromptTooLong, BadPrompt: as `validate_prompt`.
    """
    validate_prompt(prompt, layout, num_new_tokens=1)
    return min(sampling.max_new_tokens, layout.max_positions - len(prompt))
