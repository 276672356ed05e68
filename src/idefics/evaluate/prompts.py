"""`SuitePrompts`: makes the request of each row of a suite, its few-shot examples among it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from idefics.batch.prompt_template import PromptRenderer
from idefics.batch.rows import BatchRow, Media
from idefics.errors import BadPrompt
from idefics.evaluate.prompt_style import PromptStyle
from idefics.evaluate.request import QUERY_PICTURE, EvaluationRequest, Part, PictureRef, raw_turn
from idefics.evaluate.shots import PictureContents, ShotSelector
from idefics.evaluate.suite import EvaluationRow, Suite
from idefics.tasks.classify import task_and_label_text

FIELD = re.compile(r"\{(\w+)\}")
PICTURE_PLACE = re.compile("\0(\\d+)\0")  # no text of a data set holds a null character
IMAGE, ANSWER = "<image>", "{answer}"


def picture_place(number: int) -> str:
    """What stands for the picture of this number in a field of a row: 0 is `media`, 1 the first of `more_media`."""
    return f"\0{number}\0"


@dataclass(frozen=True)
class SuitePrompts(PromptRenderer):
    """Makes the requests of a suite's rows; takes the place of a `PromptTemplate` in a `BatchRun`.

    Attributes:
        suite: the suite.
        style: the wording, where labels are ranked or the suite has only one.
        open_style: the wording for rows without labels.
        kind: the checkpoint's kind.
        shots: chooses the few-shot examples of a row; None: there are none.
        seed: of the captions that are drawn for shots.
        contents: of the rows' pictures, so that a request changes with the pictures of its examples.
    """

    suite: Suite
    style: PromptStyle
    open_style: PromptStyle
    kind: Literal["base", "chat"]
    shots: ShotSelector | None
    seed: int
    contents: PictureContents

    def render(self, row: BatchRow, caption: str | None) -> str:
        """The request of a row as text.

        Raises:
            BadPrompt: the row lacks a field that the prompt names, or its right answer is not one of its labels.
            BadPicture: there are shots or further pictures, and a picture cannot be read.
        """
        assert isinstance(row, EvaluationRow)
        labels = row.labels or self.suite.labels
        if self.suite.answer == "rank" and labels and not set(row.references) & set(labels):
            raise BadPrompt(
                f"{row.name} has the right answer {row.references}, which is not one of its labels"
            )
        return self.make_request(row).to_text(self.suite.labels)

    def further_media(self, row: BatchRow, prompt: str | None) -> Sequence[Media]:
        """The pictures of a request after the row's own, in the order in which the request first names them."""
        assert isinstance(row, EvaluationRow)
        assert prompt is not None
        own = {_picture_id(row.name, number): media for number, media in enumerate(row.more_media, 1)}
        ids = EvaluationRequest.from_text(prompt, self.suite.labels).further_picture_ids
        return [own[id] if id in own else self._find_shot_picture(id) for id in ids]

    def _find_shot_picture(self, id: str) -> Media:
        """A picture of a few-shot example."""
        assert self.shots is not None
        name, _, number = id.rpartition("#picture")
        row = self.shots.support_by_name[id if id in self.shots.support_by_name else name]
        media = row.media if row.name == id else row.more_media[int(number) - 1]
        assert media is not None
        return media

    def make_request(self, row: EvaluationRow) -> EvaluationRequest:
        """The request of a row; see `render`."""
        shots = self.shots.select(row) if self.shots is not None else ()
        request = self._fill_in(row, shots)
        ids = request.further_picture_ids
        if not ids:
            return request
        content_by_id = {
            _picture_id(one.name, number) if number else one.name: content
            for one in (*shots, row)
            for number, content in enumerate(self.contents.find(one))
        }
        return replace(request, contents=tuple(content_by_id[id] for id in ids))

    def _fill_in(self, row: EvaluationRow, shots: Sequence[EvaluationRow]) -> EvaluationRequest:
        """The request of a row after its few-shot examples, without the contents of pictures."""
        labels = row.labels or self.suite.labels
        is_ranked = self.suite.answer == "rank" and bool(labels)
        style = self.style if is_ranked else self.open_style
        extra = {"label_list": task_and_label_text(labels, self.kind)[1]} if labels else {}
        answers = [(shot, self._shot_answer(row, shot)) for shot in shots]
        if style.is_chat:
            return _chat_request(style, row, answers, labels if is_ranked else (), extra)
        query_fields = extra | dict.fromkeys(self.suite.excluded_fields, "")
        parts: list[Part] = [fill(style.prefix, row, extra)]
        head, _, tail = style.example.partition(ANSWER)
        for shot, answer in answers:
            # The answer is put in as it is: what looks like a field in it is none.
            text = fill(head, shot, extra) + answer + fill(tail, shot, extra)
            parts += split_at_pictures(text, shot.name, shot.name)
        before = fill(head, row, query_fields)
        prompt, after = before.rstrip(), fill(tail, row, query_fields)
        if is_ranked and self.suite.is_length_normalized:  # the words before the label count too
            prompt = before[: before.rindex("\0") + 1]
        space = before[len(prompt) :]
        parts += split_at_pictures(prompt, row.name, QUERY_PICTURE)
        return EvaluationRequest(
            turns=(raw_turn(parts),),
            labels=labels if is_ranked else (),
            label_start=space if is_ranked else "",
            label_end=after if is_ranked else "",
            begins_with_bos=style.begins_with_bos,
        )

    def _shot_answer(self, row: EvaluationRow, shot: EvaluationRow) -> str:
        """The answer of a few-shot example: the most frequent of its answers, or one of its captions, drawn."""
        if not shot.references:
            raise BadPrompt(f"{shot.name} has no right answer, and is an example for {row.name}")
        if self.suite.answer == "caption":
            return random.Random(f"{self.seed} {row.name} {shot.name}").choice(shot.references)
        return Counter(shot.references).most_common(1)[0][0]


def _chat_request(
    style: PromptStyle,
    row: EvaluationRow,
    answers: Sequence[tuple[EvaluationRow, str]],
    labels: Sequence[str],
    extra: Mapping[str, str],
) -> EvaluationRequest:
    """The request in the checkpoint's chat template: each shot is a turn of the user and one of the assistant."""
    turns: list[tuple[Literal["raw", "user", "assistant"], tuple[Part, ...]]] = []
    for shot, answer in answers:
        turns += [("user", _user_parts(style, shot, shot.name, extra)), ("assistant", (answer,))]
    turns.append(("user", _user_parts(style, row, QUERY_PICTURE, extra)))
    return EvaluationRequest(turns=tuple(turns), labels=tuple(labels))


def _user_parts(
    style: PromptStyle, row: EvaluationRow, picture: str, extra: Mapping[str, str]
) -> tuple[Part, ...]:
    """The parts of a user's turn: the pictures where the text names them, else the picture before the text."""
    parts = split_at_pictures(fill(style.example, row, extra), row.name, picture)
    has_picture = any(isinstance(part, PictureRef) for part in parts)
    return tuple(parts if has_picture else [PictureRef(picture), *parts])


def fill(template: str, row: EvaluationRow, extra: Mapping[str, str]) -> str:
    """A template with the fields of a row, and its `<image>` as the place of the row's picture.

    Raises:
        BadPrompt: the row has no such field.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in extra:
            return extra[name]
        if name not in row.fields:
            raise BadPrompt(f"{row.name} has no {name}, which the prompt needs")
        return row.fields[name]

    return FIELD.sub(value, template.replace(IMAGE, picture_place(0)))


def split_at_pictures(text: str, row_name: str, picture: str) -> list[Part]:
    """The parts of a text with places of pictures.

    Args:
        row_name: the row's name, which identifies its further pictures.
        picture: the id of the row's first picture.
    """
    pieces = PICTURE_PLACE.split(text)  # text, number, text, ...
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            number = int(piece)
            parts.append(PictureRef(_picture_id(row_name, number) if number else picture))
        elif piece:
            parts.append(piece)
    return parts


def _picture_id(row_name: str, number: int) -> str:
    """The id of a row's further picture."""
    return f"{row_name}#picture{number}"
