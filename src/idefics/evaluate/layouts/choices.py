"""Multiple choice (ScienceQA, MMMU, MMStar, MathVista) and classification (HatefulMemes, RenderedSST2, ImageNet-1k)."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from idefics.batch.rows import Media
from idefics.batch.sources.parquet_table import ParquetReader
from idefics.batch.sources.settings import cell_media
from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import find_file, picture, read_json, read_json_lines
from idefics.evaluate.prompts import picture_place
from idefics.evaluate.suite import EvaluationRow
from idefics.formats import IMAGE_SUFFIXES
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
    return cell_media(value, f"{file}#{name}", file.parent, file, Fetcher())


NAMES_FILE = Path(__file__).parents[1] / "imagenet_names.json"


def read_hateful_memes(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `SPLIT.jsonl`, {"id", "img", "text", "label"} a line; "img" is a path in the folder."""
    for one in read_json_lines(folder / f"{split}.jsonl"):
        label = one.get("label")
        error = (
            ""
            if label in (0, 1)
            else f"hateful-memes/{split}#{one['id']} has no label: use dev_seen or test_seen"
        )
        yield EvaluationRow(
            name=f"hateful-memes/{split}#{one['id']}",
            id=str(one["id"]),
            media=None if error else picture(folder, one["img"]),
            error=error,
            fields={"text": one["text"]},
            references=() if error else ("yes" if label else "no",),
        )


def read_rendered_sst2(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `SPLIT/negative/*.png` and `SPLIT/positive/*.png`, as in rendered-sst2.tgz."""
    root = next(
        (one for one in (folder / split, folder / "rendered-sst2" / split) if one.is_dir()), folder / split
    )
    files = {label: _picture_files(root / label) for label in ("negative", "positive")}
    if not any(files.values()):
        raise BadSetting(f"{root} has no pictures in negative/ and positive/")
    for label, pictures in files.items():
        for file in pictures:
            id = f"{label}/{file.name}"
            yield EvaluationRow(
                name=f"rendered-sst2/{split}#{id}", id=id, media=picture(root, id), references=(label,)
            )


def read_imagenet(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `SPLIT/CLASS/*.JPEG`, a folder for each class, with `LOC_synset_mapping.txt` for their names.

    A class is a WordNet id such as n01440764, whose line in `LOC_synset_mapping.txt` has its names; or a name that the
    authors' prompts have, such as "tench". The pictures come class by class in the order of their file's names, the
    first of each class first, so that a limit takes all classes alike.
    """
    root = next(
        (one for one in (folder / split, folder / "ILSVRC/Data/CLS-LOC" / split) if one.is_dir()),
        folder / split,
    )
    names = _read_synsets(folder)
    classes = sorted(one for one in (root.iterdir() if root.is_dir() else ()) if one.is_dir())
    if not classes:
        raise BadSetting(
            f"{root} has no folder for each class: docs/evaluation.md says how the folder is laid out"
        )
    files = {one: _picture_files(one) for one in classes}
    for index in range(max(map(len, files.values()))):
        for one in classes:
            if index < len(files[one]):
                id = f"{one.name}/{files[one][index].name}"
                label = names.get(one.name, one.name)
                yield EvaluationRow(
                    name=f"imagenet/{split}#{id}", id=id, media=picture(root, id), references=(label,)
                )


@cache
def imagenet_names() -> dict[str, str]:
    """The name of each class in the authors' prompts, by its names in ImageNet ("tench, Tinca tinca")."""
    return cast("dict[str, str]", json.loads(NAMES_FILE.read_text(encoding="utf-8")))


def _read_synsets(folder: Path) -> dict[str, str]:
    """The prompts' name of each WordNet id; empty if there is no `LOC_synset_mapping.txt`."""
    file = folder / "LOC_synset_mapping.txt"
    if not file.is_file():
        return {}
    lines = (line.partition(" ") for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return {
        id: imagenet_names().get(names.strip(), names.partition(",")[0].strip()) for id, _, names in lines
    }


def _picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name."""
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.iterdir() if one.name.lower().endswith(IMAGE_SUFFIXES))
