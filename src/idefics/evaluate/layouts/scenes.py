"""Drawn scenes like those that the demo checkpoints were trained on, with questions; bundled with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from idefics.evaluate.layouts.files import picture, read_json_lines
from idefics.evaluate.suite import EvaluationRow

SCENES_FOLDER = Path(__file__).parents[1] / "scenes"


def read_scenes(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `SPLIT/questions.jsonl`, {"image", "question", "answer"} a line; pictures in `SPLIT/`.

    Args:
        split: "test", or "train" for few-shot examples.
    """
    for number, one in enumerate(read_json_lines(folder / split / "questions.jsonl")):
        yield EvaluationRow(
            name=f"demo/{split}#{number}",
            id=str(number),
            media=picture(folder / split, one["image"]),
            fields={"question": one["question"]},
            references=(one["answer"],),
        )
