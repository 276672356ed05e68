"""Texts about pictures: captions, open questions, and dialogs or pairs of captions of which some are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idefics.batch.rows import Media
from idefics.errors import BadSetting
from idefics.evaluate.layouts.files import find_file, picture, read_json, read_json_lines, text_list
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


def read_vqav2(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads the official files of VQAv2: questions and annotations, pictures of COCO.

    `v2_OpenEnded_mscoco_SPLIT2014_questions.json` ({"questions": [{question_id, image_id, question}]}),
    `v2_mscoco_SPLIT2014_annotations.json` ({"annotations": [{question_id, answers: [{answer}]}]}), and
    `SPLIT2014/COCO_SPLIT2014_<12 digits>.jpg`. Without annotations, as of the test set, nothing is read.
    """
    return _read_vqa(folder, split, "vqa", "v2_")


def read_okvqa(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads the official files of OK-VQA, as those of VQAv2 without "v2_"."""
    return _read_vqa(folder, split, "okvqa", "")


def _read_vqa(folder: Path, split: str, name: str, prefix: str) -> Iterator[EvaluationRow]:
    """Reads files of VQAv2's form, whose names begin with a prefix; one folder may have those of several data sets."""
    questions = read_json(find_file(folder, f"{prefix}OpenEnded_mscoco_{split}2014_questions.json"))
    annotations = read_json(find_file(folder, f"{prefix}mscoco_{split}2014_annotations.json"))
    answers = {one["question_id"]: text_list(one["answers"]) for one in annotations["annotations"]}
    for one in questions["questions"]:
        id, file_name = one["question_id"], f"COCO_{split}2014_{one['image_id']:012d}.jpg"
        media = picture(folder, f"{split}2014/{file_name}", f"images/{file_name}")
        yield _row(f"{name}/{split}", id, media, one["question"], answers.get(id, ()))


def read_textvqa(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `TextVQA_0.5.1_SPLIT.json` ({"data": [{question_id, image_id, question, answers}]}).

    Pictures are in `train_images/`, those of the test set in `test_images/`.
    """
    for one in read_json(find_file(folder, f"TextVQA_*_{split}.json"))["data"]:
        places = ("train_images", "test_images", "images")
        media = picture(folder, *(f"{place}/{one['image_id']}.jpg" for place in places))
        yield _row(
            f"textvqa/{split}", one["question_id"], media, one["question"], text_list(one.get("answers"))
        )


def read_vizwiz(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `Annotations/SPLIT.json` ([{image, question, answers: [{answer}]}]); pictures in `SPLIT/`."""
    for number, one in enumerate(read_json(find_file(folder, f"Annotations/{split}.json", f"{split}.json"))):
        media = picture(folder, f"{split}/{one['image']}", f"images/{one['image']}")
        yield _row(f"vizwiz/{split}", number, media, one["question"], text_list(one.get("answers")))


def read_docvqa(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `SPLIT_v1.0*.json` ({"data": [{questionId, question, image, answers}]}).

    The file may be in `spdocvqa_qas/`; "documents/page.png" is there or in `spdocvqa_images/page.png`.
    """
    content: dict[str, Any] = read_json(
        find_file(
            folder, f"spdocvqa_qas/{split}_v1.0*.json", f"{split}_v1.0*.json", f"{split}/{split}_v1.0*.json"
        )
    )
    for one in content["data"]:
        name = Path(one["image"]).name
        media = picture(
            folder, one["image"], f"spdocvqa_images/{name}", f"{split}/documents/{name}", f"documents/{name}"
        )
        yield _row(
            f"docvqa/{split}", one["questionId"], media, one["question"], text_list(one.get("answers"))
        )


def _row(prefix: str, id: object, media: Media, question: str, answers: tuple[str, ...]) -> EvaluationRow:
    """A row with a question; one without a right answer is a row with an error."""
    error = "" if answers else f"{prefix}#{id} has no right answer: those of this split are not public"
    return EvaluationRow(
        name=f"{prefix}#{id}",
        id=str(id),
        media=None if error else media,
        error=error,
        fields={"question": question},
        references=answers,
    )


def read_visdial(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `visdial_1.0_SPLIT.json` and `visdial_1.0_SPLIT_dense*.json`: the one round that is annotated.

    Pictures: `VisualDialog_SPLIT2018/VisualDialog_SPLIT2018_<12 digits>.jpg`; those of the training split are COCO's,
    `train2014/COCO_train2014_<12 digits>.jpg` or in `val2014/`. How the authors wrote earlier rounds into
    "context" is not public; here each is "Question: ...? Answer: ....", and the last one ends with "Answer: ".
    """
    data: dict[str, Any] = read_json(find_file(folder, f"visdial_1.0_{split}.json"))["data"]
    dense = read_json(find_file(folder, f"visdial_1.0_{split}_dense*.json"))
    by_image = {one["image_id"]: one for one in dense}
    questions, answers = data["questions"], data["answers"]
    for dialog in data["dialogs"]:
        one = by_image.get(dialog["image_id"])
        if one is None:
            continue
        rounds, index = dialog["dialog"], one["round_id"] - 1
        current = rounds[index]
        earlier = [
            f"Question: {questions[r['question']]}? Answer: {answers[r['answer']]}. " for r in rounds[:index]
        ]
        question = questions[current["question"]]
        labels = tuple(answers[number] for number in current["answer_options"])
        id = dialog["image_id"]
        name = f"VisualDialog_{split}2018_{id:012d}.jpg"
        yield EvaluationRow(
            name=f"visdial/{split}#{id}",
            id=str(id),
            media=picture(
                folder,
                f"VisualDialog_{split}2018/{name}",
                f"images/{name}",
                *(f"{place}/COCO_{place}_{id:012d}.jpg" for place in ("train2014", "val2014")),
            ),
            fields={
                "caption": dialog["caption"],
                "context": f"{''.join(earlier)}Question: {question}? Answer: ",
                "question": question,
            },
            references=(labels[current["gt_index"]],),
            labels=labels,
            relevance=tuple(map(float, one.get("gt_relevance") or one["relevance"])),
        )


def read_winoground(folder: Path, split: str) -> Iterator[EvaluationRow]:
    """Reads `examples.jsonl`, {"id", "image_0", "image_1", "caption_0", "caption_1"} a line; pictures in `images/`.

    An example is two rows, one for each picture, whose labels are both captions. There is one split, test.
    """
    for one in read_json_lines(find_file(folder, "examples.jsonl", "data/examples.jsonl")):
        captions = (one["caption_0"], one["caption_1"])
        for number in (0, 1):
            name = one[f"image_{number}"]
            id = f"{one['id']}/{number}"
            yield EvaluationRow(
                name=f"winoground/{split}#{id}",
                id=id,
                media=picture(folder, f"images/{name}.png", f"images/{name}", f"data/images/{name}.png"),
                references=(captions[number],),
                labels=captions,
                group=str(one["id"]),
            )
