"""What one check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from idefics.evaluate.check.subject import CheckSubject

CheckStatus = Literal["ok", "off", "skipped"]
MAX_NAMED = 4  # things that a line names; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """What a check found.

    Attributes:
        status: "off": something is wrong; "skipped": the check does not apply, or needs something that is not there.
        measured: what was measured; of a skipped check: why it was skipped.
        limit: what it was compared with; "" of a skipped check.
        details: what is wrong, one sentence each.
    """

    status: CheckStatus
    measured: str
    limit: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """One check of a checkpoint.

    Attributes:
        name: two or three words.
        shows: what it shows when it passes.
        tolerance: the limit and the reason for it.
        run: finds the outcome.
        is_quick: whether `--quick` runs it.
    """

    name: str
    shows: str
    tolerance: str
    run: Callable[[CheckSubject], CheckOutcome]
    is_quick: bool = True


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of a check, and the seconds that it took."""

    check: ModelCheck
    outcome: CheckOutcome
    seconds: float


def skipped(reason: str) -> CheckOutcome:
    """The outcome of a check that was not done."""
    return CheckOutcome(status="skipped", measured=reason)


def judge(measured: str, limit: str, wrong: Iterable[str]) -> CheckOutcome:
    """The outcome of a check that found `wrong`, one sentence each: "ok" if there is none."""
    details = tuple(wrong)
    return CheckOutcome(status="off" if details else "ok", measured=measured, limit=limit, details=details)


def join_names(names: Iterable[str]) -> str:
    """At most `MAX_NAMED` names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more
