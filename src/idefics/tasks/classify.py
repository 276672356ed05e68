"""Classification: labels ranked by how likely the model finds each as its answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from idefics.calls import in_order, short
from idefics.errors import BadSetting
from idefics.messages import RankedLabel
from idefics.tasks.record import Task

MOST_LISTED = 20  # more labels than this are ranked without being read out first: the prompt stays short
MOST_LABELS = 1000

# The listing is that of the published Idefics guide.
TASK = Task(
    name="classify",
    help="Say which of some labels fits a picture, with a probability for each.",
    words="labels",
    chat="Classify this image into a single category from the following list: {words}.",
    lead="Instruction: Classify the following image into a single category from the following list: {words}.\n",
    line="Category:",
)
UNLISTED = Task(
    name="classify",
    help=TASK.help,
    words="labels",
    chat="What is in this image?",
    line="This is an image of",
)


def worded(labels: Sequence[str], kind: Literal["base", "chat"]) -> tuple[Task, str]:
    """The task's record for so many labels, and the words that stand for them in the prompt."""
    if len(labels) > MOST_LISTED:
        return UNLISTED, ""
    return TASK, ", ".join(labels) if kind == "chat" else str(list(labels))


def checked(labels: Sequence[str]) -> list[str]:
    """The labels, or a BadSetting: two to a thousand different ones, none blank."""
    if isinstance(labels, str):
        raise BadSetting(f"labels is the text {labels!r}: give a list, such as {labels.split(',')!r}")
    given = in_order("labels", labels, "a list of texts")
    for label in given:
        if not isinstance(label, str):
            raise BadSetting(f"a label is {short(label)}: give texts, such as 'cat'")
    found = [label.strip() for label in given]
    if not 2 <= len(found) <= MOST_LABELS:
        plural = "" if len(found) == 1 else "s"
        raise BadSetting(
            f"{len(found)} label{plural} given; classification needs 2 to {MOST_LABELS} to choose from"
        )
    if not all(found):
        raise BadSetting("a label is blank: give each label at least one character")
    if twice := sorted(label for label, count in Counter(found).items() if count > 1):
        raise BadSetting(f"labels given twice: {', '.join(twice)}: give each once")
    return found


def ranked(
    labels: Sequence[str],
    logprobs: Sequence[Sequence[float]],
    prior: Sequence[Sequence[float]] | None = None,
    *,
    length_normalized: bool = False,
) -> tuple[RankedLabel, ...]:
    """The labels with their probabilities, the likeliest first; for the rest see `scores`."""
    found = scores(logprobs, prior, length_normalized=length_normalized)
    rows = sorted(zip(labels, probabilities(found), found, strict=True), key=lambda row: -row[2])
    return tuple(RankedLabel(*row) for row in rows)


def scores(
    logprobs: Sequence[Sequence[float]], prior: Sequence[Sequence[float]] | None, *, length_normalized: bool
) -> list[float]:
    """One number a label: its tokens' summed log-probability.

    Args:
        logprobs: for each label the log-probability of each of its tokens.
        prior: the same for a content-free picture, subtracted (arXiv 2102.09690); None leaves them as they are.
        length_normalized: divide by the number of tokens.
    """
    found = []
    for index, tokens in enumerate(logprobs):
        total = math.fsum(tokens) - (math.fsum(prior[index]) if prior else 0.0)
        found.append(total / len(tokens) if length_normalized else total)
    return found


def probabilities(found: Sequence[float]) -> list[float]:
    """Softmax over the labels."""
    most = max(found)
    weights = [math.exp(score - most) for score in found]
    return [weight / math.fsum(weights) for weight in weights]
