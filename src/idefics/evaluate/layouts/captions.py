"""Captions of pictures: COCO and NoCaps, Flickr30k in Karpathy's split, TextCaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import find_file, picture, read_json
from idefics.evaluate.suite import EvaluationRow


def read_coco_captions(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads COCO: Karpathy's `dataset_coco.json` if it is there, else the official files.

    Official: `annotations/captions_SPLIT.json` ({"images": [{id, file_name}], "annotations": [{image_id, caption}]}),
    pictures in `SPLIT/`. With Karpathy's file SPLIT is train, restval, val or test, pictures in their `filepath`.
    """
    karpathy = folder / "dataset_coco.json"
    if karpathy.is_file():
        return _read_karpathy(karpathy, folder, split)
    names = {"train": "train2014", "val": "val2014", "test": "val2014"}
    name = names.get(split, split)
    return _read_official(
        folder, find_file(folder, f"annotations/captions_{name}.json", f"captions_{name}.json"), name
    )


def read_nocaps(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `nocaps_SPLIT_4500_captions.json`, of COCO's form; pictures in `SPLIT/` or `images/`."""
    return _read_official(
        folder, find_file(folder, f"nocaps_{split}*.json", f"*{split}*captions*.json"), split
    )


def read_flickr30k(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads Karpathy's `dataset_flickr30k.json`; pictures in `flickr30k-images/`."""
    return _read_karpathy(find_file(folder, "dataset_flickr30k.json"), folder, split)


def read_textcaps(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `TextCaps_0.1_SPLIT.json` ({"data": [{image_id, reference_strs}]}); pictures in `train_images/`."""
    seen = set()
    for one in read_json(find_file(folder, f"TextCaps_*_{split}.json"))["data"]:
        id = str(one["image_id"])
        if id in seen:  # the training file has a row for each caption
            continue
        seen.add(id)
        yield EvaluationRow(
            name=f"textcaps/{split}#{id}",
            id=id,
            media=picture(
                folder, *(f"{place}/{id}.jpg" for place in ("train_images", "test_images", "images"))
            ),
            references=tuple(one.get("reference_strs") or [one["caption_str"]]),
        )


def _read_official(folder: Path, file: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads a file of COCO's form."""
    content: dict[str, Any] = read_json(file)
    captions: defaultdict[int, list[str]] = defaultdict(list)
    for one in content["annotations"]:
        captions[one["image_id"]].append(one["caption"])
    for image in content["images"]:
        if image["id"] not in captions:
            continue  # the test set has none
        name = image["file_name"]
        yield EvaluationRow(
            name=f"{split}#{image['id']}",
            id=str(image["id"]),
            media=picture(folder, f"{split}/{name}", f"images/{name}", name),
            references=tuple(captions[image["id"]]),
        )


def _read_karpathy(file: Path, folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads a file of Karpathy's splits: {"images": [{filename, split, sentences: [{raw}]}]}."""
    num_rows = 0
    for image in read_json(file)["images"]:
        if image["split"] != split and not (split == "train" and image["split"] == "restval"):
            continue
        num_rows += 1
        name, id = image["filename"], str(image.get("cocoid", image.get("imgid")))
        places = (image.get("filepath", "flickr30k-images"), "images", "")
        yield EvaluationRow(
            name=f"{split}#{id}",
            id=id,
            media=picture(folder, *(f"{place}/{name}".lstrip("/") for place in places)),
            references=tuple(sentence["raw"] for sentence in image["sentences"]),
        )
    if not num_rows:
        raise BadSetting(f"{file} has no split {split!r}: it has train, val and test")
