"""Golden answers of the demo checkpoints about the bundled pictures, which a test compares with today's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import idefics
from idefics import Idefics, Message, Picture, Shot, assistant, user

GOLDEN_FOLDER = Path("tests") / "golden"
ROOT = Path(__file__).parents[2]
PICTURES_FOLDER = Path(idefics.__file__).parent / "demo" / "pictures"
NUM_LOGPROBS = 4  # tokens of an answer whose log-probabilities are kept


@dataclass(frozen=True)
class GoldenCall:
    """One call of the public API.

    Attributes:
        verb: "shots" are captions after worked examples, "chat" is a whole conversation; else the method's name.
        pictures: names of bundled pictures; the last one is asked about, those before it are shots. In a chat each
            turn adds the next one, while there are any.
        words: the question, prefix or instruction; the labels; the shots' answers; or a chat's questions.
    """

    verb: str
    pictures: tuple[str, ...]
    words: tuple[str, ...] = ()


PICTURE_NAMES = ("puppy", "tower", "statue", "picnic", "vegetables", "door", "shapes")
ALBUM_LABELS = ("animals", "vegetables", "city landscape", "cars", "office")
GOLDEN_CALLS = (
    *(GoldenCall("caption", (name,)) for name in PICTURE_NAMES),
    *(GoldenCall("complete", (name,), ("This is an image of",)) for name in PICTURE_NAMES),
    *(GoldenCall("ask", (name,), ("What is in this image?",)) for name in PICTURE_NAMES),
    *(GoldenCall("write", (name,), ("Use the image to write a story.",)) for name in PICTURE_NAMES),
    GoldenCall("ask", ("puppy",), ("Where is the puppy?",)),
    GoldenCall("ask", ("puppy",), ("How many tulips are there?",)),
    GoldenCall("ask", ("puppy",), ("What is left of the puppy?",)),
    GoldenCall("ask", ("tower",), ("Is it day or night?",)),
    GoldenCall("ask", ("statue",), ("Is there a tower?",)),
    GoldenCall("ask", ("picnic",), ("Is the basket large or small?",)),
    GoldenCall("ask", ("vegetables",), ("How many vegetables are there?",)),
    GoldenCall("ask", ("door",), ("What color is the ground?",)),
    GoldenCall("ask", ("shapes",), ("What color is the star?",)),
    GoldenCall("ask", ("shapes",), ("Is the circle above the star?",)),
    *(GoldenCall("classify", (name,), ALBUM_LABELS) for name in ("puppy", "tower", "vegetables")),
    GoldenCall(
        "shots", ("statue", "vegetables", "door"), ("1 STATUE", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT")
    ),
    GoldenCall(
        "shots",
        ("statue", "tower"),
        ("An image of a statue. Fun fact: statues can turn green in the rain.",),
    ),
    GoldenCall(
        "chat",
        ("tower", "statue"),
        ("What is in this image?", "And in this one?", "Where is it?", "What was in the first image?"),
    ),
)


def run_call(vlm: Idefics, call: GoldenCall) -> tuple[str, tuple[float, ...]]:
    """Runs a call: the text, and the log-probabilities of the first tokens or of the labels in the given order."""
    pictures = [Picture(PICTURES_FOLDER / f"{name}.png") for name in call.pictures]
    if call.verb == "classify":
        ranking = vlm.classify(pictures[0], call.words)
        score = {label.label: label.logprob for label in ranking}
        return ranking.best, tuple(score[label] for label in call.words)
    if call.verb == "chat":
        return _run_chat(vlm, pictures, call.words)
    if call.verb == "shots":
        shots = [Shot(*shot) for shot in zip(pictures[:-1], call.words, strict=True)]
        reply = vlm.with_shots(shots).caption(pictures[-1], logprobs=True)
    else:
        reply = getattr(vlm, call.verb)(pictures[0], *call.words, logprobs=True)
    return reply.text, (reply.logprobs or ())[:NUM_LOGPROBS]


def _run_chat(
    vlm: Idefics, pictures: list[Picture], questions: tuple[str, ...]
) -> tuple[str, tuple[float, ...]]:
    messages: list[Message] = []
    logprobs: tuple[float, ...] = ()
    for index, question in enumerate(questions):
        messages.append(user(*pictures[index : index + 1], question))
        reply = vlm.chat(messages, logprobs=True)
        messages.append(assistant(reply.text))
        logprobs += (reply.logprobs or ())[:1]
    return " / ".join(str(message.parts[0]) for message in messages[1::2]), logprobs


def collect_golden_answers(vlm: Idefics) -> list[dict[str, Any]]:
    """All calls with their answers, as JSON objects."""
    rows = []
    for call in GOLDEN_CALLS:
        text, logprobs = run_call(vlm, call)
        rows.append({**asdict(call), "text": text, "logprobs": [round(number, 5) for number in logprobs]})
    return rows


def write_golden(vlm: Idefics, name: str) -> Path:
    """Writes the golden answers of a checkpoint, one call a line, and returns the file."""
    path = ROOT / GOLDEN_FOLDER / f"{name}.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in collect_golden_answers(vlm))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return path
