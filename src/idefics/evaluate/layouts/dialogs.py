"""VisDial v1.0 and Winoground: candidates of which several may be right, and pairs of pictures and captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idefics.evaluate.layouts.files import find_file, picture, read_json, read_json_lines
from idefics.evaluate.suite import EvaluationRow


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
