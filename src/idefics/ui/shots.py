"""Worked examples as the page holds them, and the file that every command takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics.errors import BadPicture, BadPrompt
from idefics.messages import Shot
from idefics.tasks.shots import MOST_SHOTS, read_shots
from idefics.ui.desk import Desk
from idefics.ui.given import Given
from idefics.ui.pictures import fetched

MOST_FILE = 256 * 2**20  # bytes of a file of shots; its pictures may be inside


@dataclass(frozen=True, slots=True)
class Example:
    """One of them; `question` is empty where the task's own stands."""

    given: Given
    question: str
    answer: str

    def shot(self, desk: Desk) -> Shot:
        """It, for the model."""
        return Shot(desk.picture(self.given), self.answer, self.question)


def checked(desk: Desk, given: Given, question: str, answer: str) -> Example:
    """An example that can be followed; BadPrompt or BadPicture where it cannot."""
    if not answer.strip():
        raise BadPrompt("the example has no answer: write what the model should have said")
    desk.picture(given)
    return Example(given, question.strip(), answer.strip())


def room(shots: Sequence[Example]) -> None:
    """BadPrompt where there are too many."""
    if len(shots) > MOST_SHOTS:
        raise BadPrompt(f"{len(shots)} examples are too many: at most {MOST_SHOTS} are followed")


def as_jsonl(shots: Sequence[Example]) -> bytes:
    """The file `shots.jsonl`, with the pictures in it."""
    lines = []
    for shot in shots:
        data = base64.b64encode(Path(shot.given.path).read_bytes()).decode()
        row = {"image": f"data:;base64,{data}", "answer": shot.answer}
        lines.append(
            json.dumps(row | ({"question": shot.question} if shot.question else {}), ensure_ascii=False)
        )
    return "".join(f"{line}\n" for line in lines).encode()


def read(desk: Desk, files: Sequence[Given]) -> list[Example]:
    """The examples of a file of shots; pictures that it names must have come with it.

    Raises:
        BadPrompt: there is no such file among them, or not one only, or a line of it is wrong.
        BadPicture: a picture is missing, or is none. No file of this machine is ever opened for it.
    """
    texts = [given for given in files if given.name.lower().endswith(".jsonl")]
    if len(texts) != 1:
        raise BadPrompt(
            f"{len(texts)} files of examples were given: choose one .jsonl, and the pictures that it names"
        )
    if Path(texts[0].path).stat().st_size > MOST_FILE:
        raise BadPrompt(f"{texts[0].name} is larger than {MOST_FILE:,} bytes: give fewer or smaller pictures")
    try:
        shots = read_shots(texts[0].path)
    except BadPrompt as error:
        raise BadPrompt(str(error).replace(str(texts[0].path), texts[0].name)) from None
    beside = {Path(given.name).name: given for given in files}
    return [_example(desk, shot, beside, number) for number, shot in enumerate(shots, start=1)]


def _example(desk: Desk, shot: Shot, beside: dict[str, Given], number: int) -> Example:
    source = shot.picture.source
    if isinstance(source, str):
        given = fetched(desk, source, f"example-{number}")
    elif isinstance(source, Path) and source.name in beside:
        given = beside[source.name]
    else:
        raise BadPicture(
            f"example {number} names {Path(str(source)).name}: choose that picture too, beside the .jsonl"
        )
    return checked(desk, given, shot.question, shot.answer)


def names(shots: Sequence[Example]) -> list[tuple[str, str, str]]:
    """What "Show code" says of them: picture, question, answer."""
    return [(shot.given.name, shot.question, shot.answer) for shot in shots]
