"""One step of the engine, as the scheduler plans it and as it comes back. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from idefics.engine.job import Branch, Job
from idefics.messages import Alternative, Finish
from idefics.prompt import Tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step and the queue may hold.

    Attributes:
        rows: so many rows are answered side by side. A wider request runs alone.
        tokens: so many tokens of prompts are read in a step while others are being answered.
        alone: so many, if nobody is being answered.
        frames: so many frames of pictures are encoded in a step.
        queue: so many requests wait.
        ahead: whether rows get pages a token before they need them, as long as there are enough.
    """

    rows: int
    tokens: int
    alone: int
    frames: int
    queue: int
    ahead: bool = False


class Shelf(Protocol):
    """What the scheduler asks of the cache of pictures."""

    def missing(self, tiles: Tiles) -> int:
        """How many frames of a picture are not encoded yet."""
        ...


class Span(NamedTuple):
    """Tokens `start` to `end` of a row, which are read in one step; or the `group`-th of a job's endings after it."""

    branch: Branch
    start: int
    end: int
    group: int | None = None

    @property
    def is_last(self) -> bool:
        """Whether a token is chosen after it."""
        return self.group is None and self.end == len(self.branch.ids)


@dataclass(slots=True)
class Plan:
    """One step.

    Attributes:
        decode: rows that are read one token further.
        has_moved: whether some of them have other pages than in the step before.
        copies: for pages that begin as copies of others, which: page -> other.
        encode: pictures, and how many of their frames are encoded.
        readers: jobs that need those pictures.
        spans: what is read of prompts and endings.
        errors: jobs that failed in this step.
    """

    decode: list[Branch] = field(default_factory=list)
    has_moved: bool = False
    copies: dict[int, int] = field(default_factory=dict)
    encode: list[tuple[Tiles, int]] = field(default_factory=list)
    readers: list[Job] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    errors: dict[Job, Exception] = field(default_factory=dict)


class Pick(NamedTuple):
    """What follows for a job.

    Attributes:
        ids: the next id of each row that goes on.
        parents: the row that each of them continues; None: its own.
        logprob: of the id, where one row is asked for it.
        top: what was most likely in its place.
        end: why the job has ended with `answer` and `logprobs`, if it has.
    """

    job: Job
    ids: Sequence[int] = ()
    parents: Sequence[int] | None = None
    logprob: float | None = None
    top: tuple[Alternative, ...] = ()
    end: Finish | None = None
