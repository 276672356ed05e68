"""Classification: HatefulMemes, RenderedSST2 and ImageNet-1k."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import picture, read_json_lines
from idefics.evaluate.suite import EvaluationRow
from idefics.formats import IMAGE_SUFFIXES

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
