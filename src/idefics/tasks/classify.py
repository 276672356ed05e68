"""Classification: ranks labels by the model's probability of each label as its answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from idefics.errors import BadSetting
from idefics.messages import RankedLabel
from idefics.tasks.task import Task
from idefics.validation import short_repr, validate_list

MAX_LISTED_LABELS = 20  # more labels are not listed in the prompt, which would become too long
MAX_LABELS = 1000

# The wording is that of the published Idefics guide.
TASK = Task(
    name="classify",
    help="Say which of some labels fits a picture, with a probability for each.",
    examples=(
        'idefics classify photo.jpg --labels "cat,dog,bird"',
        'idefics classify photo.jpg --label "red, round" --label "blue, square"',
        'idefics classify photos/ --labels "indoors,outdoors" --calibrated --json',
        "idefics classify photo.jpg --labels-file labels.txt",
    ),
    words_name="labels",
    chat_prompt="Classify this image into a single category from the following list: {words}.",
    base_instruction="Instruction: Classify the following image into a single category from the following list: "
    "{words}.\n",
    base_prompt="Category:",
)
UNLISTED_TASK = replace(
    TASK, chat_prompt="What is in this image?", base_instruction="", base_prompt="This is an image of"
)


def task_and_label_text(labels: Sequence[str], kind: Literal["base", "chat"]) -> tuple[Task, str]:
    """Selects the prompt for a number of labels.

    Args:
        labels: the labels, as `check_and_strip_labels` returns them.
        kind: the checkpoint's kind; a chat prompt lists the labels as text, a base prompt as a Python list.

    Returns:
        The task, and the text that lists the labels; "" if there are too many to list.
    """
    if len(labels) > MAX_LISTED_LABELS:
        return UNLISTED_TASK, ""
    return TASK, ", ".join(labels) if kind == "chat" else str(list(labels))


def check_and_strip_labels(labels: Sequence[str]) -> list[str]:
    """Checks the labels of a classification.

    Returns:
        The labels, without blanks at their ends.

    Raises:
        BadSetting: not a list of 2 to 1000 different strings, or one is blank.
    """
    if isinstance(labels, str):
        raise BadSetting(f"labels is the text {labels!r}: give a list, such as {labels.split(',')!r}")
    label_list = validate_list("labels", labels, "a list of texts")
    for label in label_list:
        if not isinstance(label, str):
            raise BadSetting(f"a label is {short_repr(label)}: give strings, such as 'cat'")
    stripped = [label.strip() for label in label_list]
    if not 2 <= len(stripped) <= MAX_LABELS:
        plural = "" if len(stripped) == 1 else "s"
        raise BadSetting(
            f"{len(stripped)} label{plural} given; classification needs 2 to {MAX_LABELS} to choose from"
        )
    if not all(stripped):
        raise BadSetting("a label is blank: give each label at least one character")
    if duplicates := sorted(label for label, count in Counter(stripped).items() if count > 1):
        raise BadSetting(f"labels given twice: {', '.join(duplicates)}: give each once")
    return stripped


def rank_labels(
    labels: Sequence[str],
    logprobs: Sequence[Sequence[float]],
    prior: Sequence[Sequence[float]] | None = None,
    *,
    length_normalized: bool = False,
) -> tuple[RankedLabel, ...]:
    """Ranks labels by their scores; a label's probability is the softmax of its score over all labels.

    Args:
        labels: the labels.
        logprobs: for each label the log-probability of each of its tokens.
        prior: see `score_labels`.
        length_normalized: see `score_labels`.

    Returns:
        (label, probability, score) for each label, the most probable first.
    """
    label_scores = score_labels(logprobs, prior, length_normalized=length_normalized)
    rows = sorted(zip(labels, softmax(label_scores), label_scores, strict=True), key=lambda row: -row[2])
    return tuple(RankedLabel(*row) for row in rows)


def score_labels(
    logprobs: Sequence[Sequence[float]],
    prior: Sequence[Sequence[float]] | None = None,
    *,
    length_normalized: bool,
) -> list[float]:
    """Computes the score of each label: the sum of the log-probabilities of its tokens.

    Args:
        logprobs: for each label the log-probability of each of its tokens.
        prior: the same for a content-free picture; its sum is subtracted (contextual calibration, arXiv 2102.09690).
            None: nothing is subtracted.
        length_normalized: divide each score by the label's number of tokens.

    Returns:
        One score for each label.
    """
    label_scores = []
    for index, tokens in enumerate(logprobs):
        total = math.fsum(tokens) - (math.fsum(prior[index]) if prior else 0.0)
        label_scores.append(total / len(tokens) if length_normalized else total)
    return label_scores


def softmax(label_scores: Sequence[float]) -> list[float]:
    """Computes the probabilities of labels from their scores: exp(score) / sum of all exp(scores)."""
    max_score = max(label_scores)
    exponentials = [math.exp(score - max_score) for score in label_scores]
    return [weight / math.fsum(exponentials) for weight in exponentials]
