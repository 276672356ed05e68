"""Suites from end to end with the demo models, on miniature copies of their data."""

import json

import pytest
from eval_rows import PICTURES, read_report

import idefics
from idefics.cli.main import run

NAMES = sorted(PICTURES)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def picture(number):
    return PICTURES[NAMES[number % len(NAMES)]].read_bytes()


def make_coco(folder):
    images = []
    for split in ("test", "train"):
        for number in range(4):
            put(folder, f"val2014/{split}{number}.png", picture(number + 3 * (split == "train")))
            sentences = [{"raw": f"A thing number {number}."}, {"raw": "A picture of a thing."}]
            images.append(
                {"filename": f"{split}{number}.png", "filepath": "val2014", "split": split, "sentences": sentences,
                 "cocoid": len(images)}
            )  # fmt: skip
    put(folder, "dataset_coco.json", {"images": images})


def make_vqa(folder):
    for split in ("val", "train"):
        questions, annotations = [], []
        for number in range(4):
            put(folder, f"{split}2014/COCO_{split}2014_{number:012d}.jpg", picture(number))
            id = number + 100 * (split == "train")
            questions.append({"question_id": id, "image_id": number, "question": "Is it day or night?"})
            annotations.append(
                {"question_id": id, "answers": [{"answer": "night"}] * 6 + [{"answer": "day"}] * 4}
            )
        put(folder, f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
        put(folder, f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})


def make_scienceqa(folder):
    problems = {}
    for number in range(6):
        split = "test" if number < 3 else "train"
        put(folder, f"images/{split}/{number}/image.png", picture(number))
        problems[str(number)] = {
            "question": "What is it?", "choices": ["a puppy", "a tower", "a door"][: 2 + number % 2], "answer": 1,
            "hint": "", "image": "image.png", "solution": "One sees it.",
        }  # fmt: skip
    put(folder, "problems.json", problems)
    put(folder, "pid_splits.json", {"test": ["0", "1", "2"], "train": ["3", "4", "5"]})


def make_memes(folder):
    for split in ("test_seen", "train"):
        lines = []
        for number in range(4):
            put(folder, f"img/{split}{number}.png", picture(number + 4 * (split == "train")))
            one = {"id": number, "img": f"img/{split}{number}.png", "text": "a good day", "label": number % 2}
            lines.append(json.dumps(one))
        put(folder, f"{split}.jsonl", "\n".join(lines).encode())


def make_visdial(folder):
    dialogs = []
    for id in (1, 2):
        put(folder, f"VisualDialog_val2018/VisualDialog_val2018_{id:012d}.jpg", picture(id))
        one = {"question": 0, "answer": 1, "answer_options": [0, 1, 2], "gt_index": 1}
        dialogs.append({"image_id": id, "caption": "a thing", "dialog": [one, one]})
    data = {"questions": ["is it day"], "answers": ["yes", "no", "no, it is not"], "dialogs": dialogs}
    put(folder, "visdial_1.0_val.json", {"data": data})
    dense = [{"image_id": id, "round_id": 2, "gt_relevance": [0, 1, 0.5]} for id in (1, 2)]
    put(folder, "visdial_1.0_val_dense_annotations.json", dense)


def make_winoground(folder):
    lines = []
    for id in (0, 1):
        for number in (0, 1):
            put(folder, f"images/{id}_{number}.png", picture(2 * id + number))
        lines.append(
            json.dumps({"id": id, "image_0": f"{id}_0", "image_1": f"{id}_1", "caption_0": "a puppy on a tower",
                        "caption_1": "a tower on a puppy"})
        )  # fmt: skip
    put(folder, "examples.jsonl", "\n".join(lines).encode())


def make_mmmu(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    base = {f"image_{number}": None for number in range(1, 8)}
    first, second = ({"bytes": picture(number), "path": None} for number in (0, 1))
    records = [
        {**base, "id": "v1", "question": "Is <image 1> like <image 2>?", "options": "['yes', 'no']", "answer": "B",
         "question_type": "multiple-choice", "image_1": first, "image_2": second},
        {**base, "id": "v2", "question": "How many things are there?", "options": "[]", "answer": "one",
         "question_type": "open", "image_1": first},
    ]  # fmt: skip
    (folder / "Art").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "Art" / "validation-0.parquet")


def make_imagenet(folder):
    for split in ("val", "train"):
        for name in ("tench", "goldfish"):
            put(folder, f"{split}/{name}/{name}.png", picture(len(name) + len(split)))


MAKERS = {
    "coco": make_coco,
    "vqav2": make_vqa,
    "scienceqa": make_scienceqa,
    "hateful-memes": make_memes,
    "visdial": make_visdial,
    "winoground": make_winoground,
    "mmmu": make_mmmu,
    "imagenet": make_imagenet,
}
WITH_SHOTS = ("coco", "vqav2", "scienceqa", "hateful-memes")


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Makes the data of a suite, evaluates it and returns the report; fails if a row failed."""

    def evaluate(suite, *words, model="demo"):
        if not (tmp_path / suite).exists():
            MAKERS[suite](tmp_path / suite)
        out = tmp_path / "report.json"
        command = ["eval", suite, "--data", str(tmp_path / suite), "--model", model, "--out", str(out)]
        code = run([*command, *words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        report = read_report(out)
        assert report["num_failed"] == 0, report["rows"]
        return report

    return evaluate


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
@pytest.mark.parametrize("suite", MAKERS)
def test_a_suite_is_evaluated(evaluate, suite, model):
    report = evaluate(suite, model=model)
    assert report["num_rows"] == {
        "coco": 4,
        "vqav2": 4,
        "hateful-memes": 4,
        "scienceqa": 3,
        "winoground": 4,
    }.get(suite, 2)
    for figure in report["metrics"]:
        assert figure["low"] <= figure["value"] <= figure["high"], figure
    for row in report["rows"]:
        if "label_scores" in row:
            assert row["answer"]
            assert max(row["label_scores"]) < 0


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
@pytest.mark.parametrize("suite", WITH_SHOTS)
def test_a_suite_with_shots(evaluate, suite, model):
    report = evaluate(suite, "--shots", "2", "--selection", "rices", model=model)
    assert report["example"].count("<image>") == 3
    assert "this model's own vision features" in report["settings"]["selection"]


def test_memes_have_both_figures(evaluate):
    report = evaluate("hateful-memes", "--prompts", "base", model="demo-idefics1")
    assert [one["name"] for one in report["metrics"]] == ["ROC-AUC of decisions", "ROC-AUC", "accuracy"]
    decisions = [row["numbers"] for row in report["rows"]]
    right = [[decision for decision, label in decisions if label == one] for one in (0, 1)]
    balanced = ((1 - sum(right[0]) / len(right[0])) + sum(right[1]) / len(right[1])) / 2
    assert report["metrics"][0]["value"] == pytest.approx(100 * balanced)
    assert report["published"]


def test_the_labels_of_a_suite_are_not_in_each_request(evaluate, tmp_path):
    report = evaluate("imagenet")
    assert len(report["rows"][0]["label_scores"]) > 990
    ledger = next(tmp_path.glob("*.ledger"))
    assert b"white shark" not in ledger.read_bytes()


def test_multiple_choice_by_generation(evaluate):
    report = evaluate("mmmu", "--by", "generation")
    assert report["settings"]["answers"] == "generated text"
    assert not any("label_scores" in row for row in report["rows"])
    assert report["example"].count("<image>") == 2


def test_a_row_of_two_pictures_and_an_open_one(evaluate):
    report = evaluate("mmmu", "--prompts", "instruct")
    choice, free = report["rows"]
    assert len(choice["label_scores"]) == 2
    assert "label_scores" not in free
    assert report["example"].startswith(
        "User: Is <image> like <image>?\nA. yes\nB. no\nAnswer with the letter."
    )


def test_the_scores_are_those_of_a_plain_call(evaluate, tmp_path):
    """The sum of the log-probabilities of what follows the prompt, label and all."""
    report = evaluate("hateful-memes", "--prompts", "base")
    text = (
        "It's a conversation between a human, the user, and an intelligent visual AI, Bot. The user sends memes with "
        "text written on them, and Bot has to say whether the meme is hateful or not."
    )
    file = tmp_path / "hateful-memes" / "img" / "test_seen0.png"
    after = 'is an image with written "a good day" on it. Is it hateful? Answer:'
    with idefics.load("demo") as vlm:
        _, scores = vlm.score([text, file, after], [" no", " yes"])
    assert report["rows"][0]["label_scores"] == pytest.approx([sum(one) for one in scores], abs=1e-4)
