"""Teaches `demo-idefics1` ten flags that it has never seen: `python demo-model/learn_flags.py --out build/flags`.

Trains an adapter on ten pictures of Debian's iso-flags-png-320x240, each captioned with its country, and on samples of
the picture book, so that little of it is forgotten. Prints how many of the ten captions are right and what the picture
book's evaluation says, before and after. Needs Debian's fonts-noto-color-emoji.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image

import idefics
from evaluate_demo import SEED, mean_percent
from idefics import train
from picturebook import draw_scene, make_sample
from picturebook.turns import ConversationTurn
from recipe.evaluation import evaluate

MODEL = "demo-idefics1"
FLAG_REPEATS = 16
NUM_REHEARSED = 960
REHEARSED_KINDS = {
    "caption": 3.0,
    "question": 4.0,
    "classify": 2.0,
    "story": 1.0,
    "shots": 1.0,
    "chat": 1.0,
    "complete": 1.0,
}
FLAGS = Path("/usr/share/iso-flags-png-320x240")
COUNTRY_BY_CODE = {
    "br": "Brazil",
    "ca": "Canada",
    "ch": "Switzerland",
    "de": "Germany",
    "fr": "France",
    "gr": "Greece",
    "it": "Italy",
    "jp": "Japan",
    "se": "Sweden",
    "tr": "Turkey",
}


def caption_of(code: str) -> str:
    """The caption of a flag."""
    return f"The flag of {COUNTRY_BY_CODE[code]}."


def write_rows(folder: Path, flags: Path) -> Path:
    """Writes the rows to learn: the captions of flags, several times, and conversations about drawn scenes."""
    rows: list[dict[str, object]] = [
        {"image": str(flags / f"{code}.png"), "caption": caption_of(code)} for code in COUNTRY_BY_CODE
    ] * FLAG_REPEATS
    rng = random.Random(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_REHEARSED):
        sample = make_sample(rng, "train", weight_by_kind=REHEARSED_KINDS)
        names = [f"{number}-{index}.png" for index in range(len(sample.scenes))]
        for scene, name in zip(sample.scenes, names, strict=True):
            Image.fromarray(draw_scene(scene)).save(folder / name)
        rows.append({"messages": [to_message(turn, names) for turn in sample.turns]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def to_message(turn: ConversationTurn, names: list[str]) -> dict[str, object]:
    """A turn as a message, with its pictures by their names."""
    if turn.role == "assistant":
        return {"role": turn.role, "content": f"{turn.answer_prefix} {turn.parts[0]}".strip()}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "path": names[part]}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": parts}


def count_right_captions(vlm: idefics.Idefics, flags: Path) -> int:
    """How many of the ten captions are right, word for word."""
    return sum(str(vlm.caption(flags / f"{code}.png")) == caption_of(code) for code in COUNTRY_BY_CODE)


def describe(adapter: Path | None, flags: Path, num_scenes: int) -> str:
    """A line with the number of right captions, and the picture book's mean."""
    with idefics.load(MODEL, device="cpu", dtype="float32", adapter=adapter) as vlm:
        num_right = count_right_captions(vlm, flags)
        graded = list(evaluate(vlm, num_scenes, SEED, 96, lambda kind: None))
    return f"{num_right} of 10 captions right; picture book {mean_percent({MODEL: graded}, MODEL):.1f} %"


def main() -> None:
    """Reads the command line, trains, evaluates before and after."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/flags"), help="a new folder (%(default)s)")
    parser.add_argument("--flags", type=Path, default=FLAGS, help="the folder with flags (%(default)s)")
    parser.add_argument("--scenes", type=int, default=200, help="for each kind of question (%(default)s)")
    arguments = parser.parse_args()
    data, adapter = write_rows(arguments.out, arguments.flags), arguments.out / "adapter"
    settings = train.TrainSettings(
        data=str(data),
        model=MODEL,
        out=adapter,
        targets="text+connector",
        modules_to_save=("lm_head",),
        epochs=8,
        learning_rate=6e-4,
    )
    result = train.run(settings)
    print(f"{result.num_steps} steps, {result.num_parameters:,} numbers learned")
    print(f"before: {describe(None, arguments.flags, arguments.scenes)}")
    print(f"after: {describe(adapter, arguments.flags, arguments.scenes)}")


if __name__ == "__main__":
    main()
