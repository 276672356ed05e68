"""Installed drawings with questions: easy-VQA (github.com/vzhou842/easy-VQA, MIT), and scenes that the demo knows."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import picture, read_json, read_json_lines
from idefics.evaluate.suite import EvaluationRow


def read_easy_vqa(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `data/SPLIT/questions.json`, [question, answer, picture number] each, and `data/SPLIT/images/N.png`.

    Args:
        folder: of the package easy-vqa 1.0 or its repository, or the `data` folder in it.
        split: "train" or "test".
    """
    data = next(
        (one for one in (folder / "data", folder / "easy_vqa" / "data", folder) if one.is_dir()), folder
    )
    for number, (question, answer, image) in enumerate(read_json(data / split / "questions.json")):
        yield EvaluationRow(
            name=f"easy-vqa/{split}#{number}",
            id=str(number),
            media=picture(data / split / "images", f"{image}.png"),
            fields={"question": question},
            references=(answer,),
        )


def installed_easy_vqa() -> Path:
    """The folder of the installed package; it is not imported.

    Raises:
        BadSetting: it is not installed.
    """
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise BadSetting(
            "easy-vqa is not installed: `pip install --no-deps easy-vqa`, or give its folder with --data"
        )
    return Path(spec.origin).parent


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
