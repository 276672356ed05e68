"""Multiple choice: ScienceQA, MMMU, MMStar and MathVista."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from idefics.batch.rows import Media
from idefics.batch.sources.media import bytes_media, cell_media
from idefics.batch.sources.parquet_table import ParquetReader
from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import find_file, picture, read_json
from idefics.evaluate.prompts import picture_place
from idefics.evaluate.suite import EvaluationRow
from idefics.processing.fetch import Fetcher

LETTERS = string.ascii_uppercase
MAX_PICTURES = 7  # of a question of MMMU
PICTURE_MARK = re.compile(r"<image (\d)>")


def read_scienceqa(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `problems.json`, `pid_splits.json` and `images/SPLIT/ID/image.png`; questions without picture are left out.

    The authors' columns "context" and "solution" come from their own copy of the data, which is not public: here the
    context is the question, the hint and the choices, and the solution is that of the data.
    """
    problems = read_json(find_file(folder, "problems.json", "data/scienceqa/problems.json"))
    ids = read_json(find_file(folder, "pid_splits.json", "data/scienceqa/pid_splits.json"))
    for id in ids[split]:
        one = problems[id]
        if not one.get("image"):
            continue
        choices = tuple(one["choices"])
        hint = f"Context: {one['hint']}\n" if one.get("hint") else ""
        yield EvaluationRow(
            name=f"scienceqa/{split}#{id}",
            id=id,
            media=picture(folder, f"images/{split}/{id}/{one['image']}", f"{split}/{id}/{one['image']}"),
            fields={
                "question": choice_question(one["question"], choices),
                "context": f"Question: {one['question']}\n{hint}Choices: {', '.join(choices)}\n",
                "solution": one.get("solution", ""),
            },
            references=(choices[one["answer"]],),
            labels=choices,
        )


def read_mmmu(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads the Parquet files of MMMU/MMMU on the hub: `SUBJECT/SPLIT-*.parquet`, all subjects."""
    for file in _parquet_files(folder, split):
        for one in _records(file):
            pictures = [
                one[f"image_{number}"] for number in range(1, MAX_PICTURES + 1) if one.get(f"image_{number}")
            ]
            options = (
                ast.literal_eval(one["options"]) if isinstance(one["options"], str) else list(one["options"])
            )
            media, *more = [
                _cell(value, f"{one['id']}/{number}", file) for number, value in enumerate(pictures, 1)
            ]
            has_choices = one["question_type"] == "multiple-choice"
            question = choice_question(one["question"], options if has_choices else [])
            marked = PICTURE_MARK.sub(lambda match: picture_place(int(match[1]) - 1), question)
            has_mark = marked != question
            answer = one["answer"]
            yield EvaluationRow(
                name=f"mmmu/{split}#{one['id']}",
                id=one["id"],
                media=media,
                more_media=tuple(more),
                fields={"question": marked if has_mark else f"{picture_place(0)}{question}"},
                references=(answer,) if has_choices else _texts_of(answer),
                labels=tuple(LETTERS[: len(options)]) if has_choices else (),
            )


def read_mmstar(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `mmstar.parquet` of Lin-Chen/MMStar on the hub, or `SPLIT-*.parquet`; a question has its options in it."""
    whole = folder / "mmstar.parquet"
    for file in [whole] if split == "val" and whole.is_file() else _parquet_files(folder, split):
        for one in _records(file):
            letters = tuple(
                letter for letter in LETTERS[:6] if re.search(rf"(?:^|[\s,(]){letter}[:.)]", one["question"])
            )
            labels = letters if one["answer"] in letters and len(letters) > 1 else tuple("ABCD")
            yield EvaluationRow(
                name=f"mmstar/{split}#{one['index']}",
                id=str(one["index"]),
                media=_cell(one["image"], str(one["index"]), file),
                fields={"question": one["question"]},
                references=(one["answer"],),
                labels=labels,
            )


def read_mathvista(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads the Parquet files of AI4Math/MathVista on the hub: `SPLIT-*.parquet`.

    The right choice is given as text. For open questions the instruction says of what type the answer is, as the
    data's "query" does.
    """
    for file in _parquet_files(folder, split):
        for one in _records(file):
            choices = list(one["choices"] or [])
            question = choice_question(one["question"], choices)
            number = LETTERS[choices.index(one["answer"])] if one["answer"] in choices else one["answer"]
            yield EvaluationRow(
                name=f"mathvista/{split}#{one['pid']}",
                id=str(one["pid"]),
                media=_cell(one.get("decoded_image") or one["image"], str(one["pid"]), file),
                fields={"question": question, "instruction": _mathvista_instruction(one)},
                references=(number,),
                labels=tuple(LETTERS[: len(choices)]),
            )


def choice_question(question: str, options: Sequence[str]) -> str:
    """A question with its options, a line for each; the wording is this package's, as the authors' is not public."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter."]) if lines else question


def _mathvista_instruction(one: Mapping[str, Any]) -> str:
    """What the data say about the answer: the part of its query before the question."""
    query = str(one.get("query") or "")
    return query.partition("\n")[0] if query.startswith("Hint:") else ""


def _texts_of(answer: str) -> tuple[str, ...]:
    """The right answers of an open question of MMMU: one, or the text of a list."""
    if answer.startswith("["):
        return tuple(map(str, ast.literal_eval(answer)))
    return (answer,)


def _parquet_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split. Raises BadSetting if there are none."""
    for pattern in (f"**/{split}-*.parquet", f"**/{split}.parquet", f"**/*{split}*.parquet"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise BadSetting(f"{folder} has no {split}-*.parquet: download the data set's files from the hub")


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file."""
    for one in ParquetReader(file).records():
        if isinstance(one, str):
            raise BadSetting(f"{file} {one}")
        yield one


def _cell(value: object, name: str, file: Path) -> Media:
    """The picture of a cell: Hugging Face's dict, bytes, or the path of a file next to the Parquet file."""
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return bytes_media(value["bytes"], f"{file}#{name}", file)
    return cell_media(value, f"{file}#{name}", file.parent, file, Fetcher())
