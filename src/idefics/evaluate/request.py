"""`EvaluationRequest`: all that is asked of a model about one row, as JSON text that the ledger keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SUITE_LABELS = "those of the suite"  # stands for them in a text
QUERY_PICTURE = ""  # the id of the picture of the row itself


@dataclass(frozen=True, slots=True)
class PictureRef:
    """A place in a prompt where a picture stands: "" is the row's own picture, else a row's name."""

    id: str


Part = str | PictureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """A prompt with places for pictures, and what is computed after it.

    Attributes:
        turns: (role, parts) of each turn of a conversation; or one with the role "raw": text and pictures as they are.
        labels: what is ranked; empty: a text is generated.
        label_start, label_end: the texts around each label, whose log-probabilities are summed with the label's. In a
            raw prompt `label_start` follows the prompt directly.
        begins_with_bos: whether the authors' prompt begins with the token that begins a document.
        contents: what identifies the content of each of `further_picture_ids`; see `PictureContents.find`.
    """

    turns: tuple[tuple[Literal["raw", "user", "assistant"], tuple[Part, ...]], ...]
    labels: tuple[str, ...] = ()
    label_start: str = ""
    label_end: str = ""
    begins_with_bos: bool = True
    contents: tuple[str, ...] = ()

    @property
    def continuations(self) -> tuple[str, ...]:
        """The text of each label whose log-probabilities are summed."""
        return tuple(f"{self.label_start}{label}{self.label_end}".rstrip() for label in self.labels)

    @property
    def picture_ids(self) -> Iterator[str]:
        """The ids of the pictures, in the order of their places."""
        for _, parts in self.turns:
            for part in parts:
                if isinstance(part, PictureRef):
                    yield part.id

    @property
    def further_picture_ids(self) -> list[str]:
        """The ids of all pictures but the row's own, each once."""
        return [id for id in dict.fromkeys(self.picture_ids) if id != QUERY_PICTURE]

    def to_text(self, suite_labels: tuple[str, ...]) -> str:
        """The request as canonical JSON: equal requests have equal texts.

        Args:
            suite_labels: labels that are not written, as all rows may share a thousand of them.
        """
        turns = [
            [role, [{"picture": part.id} if isinstance(part, PictureRef) else part for part in parts]]
            for role, parts in self.turns
        ]
        value: dict[str, Any] = {"turns": turns, "bos": self.begins_with_bos}
        if self.labels:
            labels = SUITE_LABELS if self.labels == suite_labels else self.labels
            value |= {"labels": labels, "around": [self.label_start, self.label_end]}
        if self.contents:
            value["contents"] = self.contents
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, suite_labels: tuple[str, ...]) -> EvaluationRequest:
        """The request that `to_text` wrote with the same labels of the suite."""
        value = json.loads(text)
        turns = tuple(
            (role, tuple(part if isinstance(part, str) else PictureRef(part["picture"]) for part in parts))
            for role, parts in value["turns"]
        )
        labels, (start, end) = value.get("labels", ()), value.get("around", ("", ""))
        return cls(
            turns=turns,
            labels=suite_labels if labels == SUITE_LABELS else tuple(labels),
            label_start=start,
            label_end=end,
            begins_with_bos=value["bos"],
            contents=tuple(value.get("contents", ())),
        )

    def describe(self) -> str:
        """The prompt for people: pictures are `<image>`, and the labels follow after a line."""
        lines = []
        for role, parts in self.turns:
            text = "".join("<image>" if isinstance(part, PictureRef) else part for part in parts)
            lines.append(text if role == "raw" else f"[{role}] {text}")
        if self.labels:
            listed = ", ".join(map(repr, self.continuations[:10]))
            lines.append(
                f"labels: {listed}" + (f" and {len(self.labels) - 10} more" if self.labels[10:] else "")
            )
        return "\n".join(lines)


def raw_turn(parts: Sequence[Part]) -> tuple[Literal["raw"], tuple[Part, ...]]:
    """The one turn of a raw prompt; neighbouring texts are joined, so that no separator comes between them."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return "raw", tuple(joined)
