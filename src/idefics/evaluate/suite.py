"""`Suite`, a data set with the way it is prompted and scored, and `EvaluationRow`, one of its rows. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from idefics.batch.rows import BatchRow, Media

AnswerKind = Literal["caption", "text", "rank"]
LAYOUT_METRICS = ("ndcg", "winoground")  # computed from what only a folder in the suite's layout has


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow(BatchRow):
    """A row of a suite: a picture, what is asked about it, and what is right.

    Attributes:
        fields: the texts that templates of prompts name, such as "question", "text" or "context".
        references: the right answers: all captions of the picture, all answers of people, or the right label.
        labels: the labels to rank, in their order; empty: those of the suite, or the answer is free text.
        relevance: how right each of `labels` is, from 0 to 1 (NDCG); empty elsewhere.
        more_media: further pictures that the question refers to, after `media`.
        group: rows of one group are scored together (Winoground); "" elsewhere.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    relevance: tuple[float, ...] = ()
    more_media: tuple[Media, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A data set with the way it is prompted and scored.

    Attributes:
        name: as it is typed.
        help: what the data set is, in a few words.
        files: what is in the folder that `--data` names, in a few words.
        answer: "caption" and "text" are generated; "rank": labels are ranked by their log-probability.
        metric: a key of `scoring.METRICS`.
        layout: how the folder of its official download is read, as `layouts.find_layout` names it; ""
            stands for its own name.
        split: the part that is evaluated if `--data` does not name another: that of the published figures where its
            answers are public.
        support_split: the part that few-shot examples are taken from.
        prompts: the name of the authors' prompts in `prompts.json`, who may have none; None: its own name.
        open_prompts: the name of those for questions of the suite whose answers are generated; "" if they are the same.
        has_questions: whether rows have a question; else labels or captions are all that a prompt needs.
        labels: the labels of all rows; empty: each row has its own, or answers are free text.
        excluded_fields: fields of a template that are left empty in the query, and filled in in shots.
        is_length_normalized: scores of labels are divided by their number of tokens.
        max_new_tokens: the longest answer.
    """

    name: str
    help: str
    files: str = ""
    answer: AnswerKind
    metric: str
    layout: str = ""
    split: str = "val"
    support_split: str = "train"
    prompts: str | None = None
    open_prompts: str = ""
    has_questions: bool = False
    labels: tuple[str, ...] = ()
    excluded_fields: tuple[str, ...] = ()
    is_length_normalized: bool = False
    max_new_tokens: int = 15

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", self.layout or self.name.replace("-", "_"))
