"""What the demo checkpoints say about the bundled pictures, written down so that a test can hold them to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import idefics
from idefics import Idefics, Message, Picture, Shot, assistant, user

GOLDEN = Path("tests") / "golden"
ROOT = Path(__file__).parents[2]
PICTURES = Path(idefics.__file__).parent / "demo" / "pictures"
FIRST = 4  # tokens of an answer whose log-probabilities are kept


@dataclass(frozen=True)
class Call:
    """One call of the product.

    Attributes:
        verb: "shots" are captions after worked examples, "chat" is a whole conversation; else the method's name.
        pictures: names of bundled pictures; the last one is asked about, those before it are shots. In a chat each
            turn brings the next one, as long as there are some.
        words: the question, beginning or instruction; labels; the shots' answers; a chat's questions.
    """

    verb: str
    pictures: tuple[str, ...]
    words: tuple[str, ...] = ()


ALL = ("puppy", "tower", "statue", "picnic", "vegetables", "door", "shapes")
ALBUM = ("animals", "vegetables", "city landscape", "cars", "office")
CALLS = (
    *(Call("caption", (name,)) for name in ALL),
    *(Call("complete", (name,), ("This is an image of",)) for name in ALL),
    *(Call("ask", (name,), ("What is in this image?",)) for name in ALL),
    *(Call("write", (name,), ("Use the image to write a story.",)) for name in ALL),
    Call("ask", ("puppy",), ("Where is the puppy?",)),
    Call("ask", ("puppy",), ("How many tulips are there?",)),
    Call("ask", ("puppy",), ("What is left of the puppy?",)),
    Call("ask", ("tower",), ("Is it day or night?",)),
    Call("ask", ("statue",), ("Is there a tower?",)),
    Call("ask", ("picnic",), ("Is the basket large or small?",)),
    Call("ask", ("vegetables",), ("How many vegetables are there?",)),
    Call("ask", ("door",), ("What color is the ground?",)),
    Call("ask", ("shapes",), ("What color is the star?",)),
    Call("ask", ("shapes",), ("Is the circle above the star?",)),
    *(Call("classify", (name,), ALBUM) for name in ("puppy", "tower", "vegetables")),
    Call(
        "shots", ("statue", "vegetables", "door"), ("1 STATUE", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT")
    ),
    Call(
        "shots",
        ("statue", "tower"),
        ("An image of a statue. Fun fact: statues can turn green in the rain.",),
    ),
    Call(
        "chat",
        ("tower", "statue"),
        ("What is in this image?", "And in this one?", "Where is it?", "What was in the first image?"),
    ),
)


def answer(vlm: Idefics, call: Call) -> tuple[str, tuple[float, ...]]:
    """What the model says: its text, and the log-probabilities of the first tokens or of the labels, as given."""
    pictures = [Picture(PICTURES / f"{name}.png") for name in call.pictures]
    if call.verb == "classify":
        ranking = vlm.classify(pictures[0], call.words)
        score = {label.label: label.logprob for label in ranking}
        return ranking.best, tuple(score[label] for label in call.words)
    if call.verb == "chat":
        return _conversation(vlm, pictures, call.words)
    if call.verb == "shots":
        shots = [Shot(*shot) for shot in zip(pictures[:-1], call.words, strict=True)]
        said = vlm.with_shots(shots).caption(pictures[-1], logprobs=True)
    else:
        said = getattr(vlm, call.verb)(pictures[0], *call.words, logprobs=True)
    return said.text, (said.logprobs or ())[:FIRST]


def _conversation(
    vlm: Idefics, pictures: list[Picture], questions: tuple[str, ...]
) -> tuple[str, tuple[float, ...]]:
    messages: list[Message] = []
    logprobs: tuple[float, ...] = ()
    for index, question in enumerate(questions):
        messages.append(user(*pictures[index : index + 1], question))
        said = vlm.chat(messages, logprobs=True)
        messages.append(assistant(said.text))
        logprobs += (said.logprobs or ())[:1]
    return " / ".join(str(message.parts[0]) for message in messages[1::2]), logprobs


def golden(vlm: Idefics) -> list[dict[str, Any]]:
    """All calls and their answers, ready for JSON."""
    rows = []
    for call in CALLS:
        text, logprobs = answer(vlm, call)
        rows.append({**asdict(call), "text": text, "logprobs": [round(number, 5) for number in logprobs]})
    return rows


def write_golden(vlm: Idefics, name: str) -> Path:
    """Writes `golden` of a checkpoint to its file, one call a line; the file."""
    path = ROOT / GOLDEN / f"{name}.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in golden(vlm))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return path
