"""Open questions about pictures: VQAv2 and OKVQA, TextVQA, VizWiz, DocVQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idefics.batch.rows import Media
from idefics.evaluate.layouts.files import find_file, picture, read_json, text_list
from idefics.evaluate.suite import EvaluationRow


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
