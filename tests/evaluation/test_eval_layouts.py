"""Layouts of data sets: miniature copies of every official download."""

import json

import pytest
from eval_rows import PICTURES

from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.evaluate.layouts import find_layout
from idefics.evaluate.layouts.files import text_list
from idefics.evaluate.suite_data import SuiteData
from idefics.evaluate.suites import SUITES

TOWER = PICTURES["tower.png"].read_bytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def put(folder, name, content=TOWER):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def rows_of(layout, folder, split):
    """The rows of a folder, read twice; each picture is there."""
    rows = list(find_layout(layout)(folder, split))
    assert [row.name for row in find_layout(layout)(folder, split)] == [row.name for row in rows]
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        if not row.error:
            assert row.media.read() == TOWER, row
            assert all(one.read() for one in row.more_media)
    return rows


def test_coco_official(folder):
    put(folder, "val2014/COCO_val2014_000000000007.jpg")
    content = {
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg"}, {"id": 8, "file_name": "x.jpg"}],
        "annotations": [{"image_id": 7, "caption": "A tower."}, {"image_id": 7, "caption": "At night."}],
    }
    put(folder, "annotations/captions_val2014.json", content)
    (row,) = rows_of("coco_captions", folder, "val")
    assert (row.id, row.references) == ("7", ("A tower.", "At night."))


@pytest.mark.parametrize(
    ("layout", "file", "place"),
    [
        ("coco_captions", "dataset_coco.json", "val2014"),
        ("flickr30k", "dataset_flickr30k.json", "flickr30k-images"),
    ],
)
def test_karpathys_splits(folder, layout, file, place):
    put(folder, f"{place}/7.jpg")
    image = {"filename": "7.jpg", "sentences": [{"raw": "A tower."}, {"raw": "Night."}], "imgid": 1}
    if layout == "coco_captions":
        image |= {"filepath": "val2014", "cocoid": 70}
    put(
        folder,
        file,
        {
            "images": [
                {**image, "split": "test"},
                {**image, "split": "restval", **({"cocoid": 71} if "cocoid" in image else {"imgid": 2})},
            ]
        },
    )
    (row,) = rows_of(layout, folder, "test")
    assert row.references == ("A tower.", "Night.")
    assert row.id == ("70" if layout == "coco_captions" else "1")
    assert [row.id for row in rows_of(layout, folder, "train")] == [
        "71" if layout == "coco_captions" else "2"
    ]
    with pytest.raises(BadSetting, match="has no split 'dev'"):
        rows_of(layout, folder, "dev")


def test_nocaps(folder):
    put(folder, "val/0013.jpg")
    content = {
        "images": [{"id": 0, "file_name": "0013.jpg"}],
        "annotations": [{"image_id": 0, "caption": f"c{n}"} for n in range(10)],
    }
    put(folder, "nocaps_val_4500_captions.json", content)
    (row,) = rows_of("nocaps", folder, "val")
    assert len(row.references) == 10


def test_textcaps(folder):
    put(folder, "train_images/ab12.jpg")
    one = {"image_id": "ab12", "caption_str": "a sign", "reference_strs": ["a sign", "a red sign"]}
    put(folder, "TextCaps_0.1_val.json", {"data": [one, one]})
    (row,) = rows_of("textcaps", folder, "val")
    assert row.references == ("a sign", "a red sign")


def test_vqav2_and_okvqa_in_one_folder(folder):
    put(folder, "val2014/COCO_val2014_000000000042.jpg")
    for prefix, word in (("v2_", "yes"), ("", "no")):
        question = {"image_id": 42, "question": f"Is it {word}?", "question_id": 420}
        answers = [{"answer": word, "answer_id": n} for n in range(10)]
        put(folder, f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
        put(
            folder,
            f"{prefix}mscoco_val2014_annotations.json",
            {"annotations": [{"question_id": 420, "answers": answers}]},
        )
    for layout, word in (("vqav2", "yes"), ("okvqa", "no")):
        (row,) = rows_of(layout, folder, "val")
        assert (row.fields["question"], row.references, row.id) == (f"Is it {word}?", (word,) * 10, "420")


def test_textvqa(folder):
    put(folder, "train_images/ff.jpg")
    one = {"question_id": 3, "image_id": "ff", "question": "what brand?", "answers": ["a"] * 9 + ["b"]}
    put(folder, "TextVQA_0.5.1_val.json", {"data": [one]})
    (row,) = rows_of("textvqa", folder, "val")
    assert row.references[-2:] == ("a", "b")


def test_vizwiz_and_a_split_without_answers(folder):
    put(folder, "val/V_0.jpg")
    one = {
        "image": "V_0.jpg",
        "question": "What?",
        "answers": [{"answer": "soup", "answer_confidence": "yes"}],
    }
    put(folder, "Annotations/val.json", [one])
    put(folder, "Annotations/test.json", [{"image": "V_1.jpg", "question": "What?"}])
    (row,) = rows_of("vizwiz", folder, "val")
    assert row.references == ("soup",)
    (row,) = rows_of("vizwiz", folder, "test")
    assert (row.media, row.error) == (
        None,
        "vizwiz/test#0 has no right answer: those of this split are not public",
    )


@pytest.mark.parametrize("place", ["documents", "spdocvqa_images"])
def test_docvqa(folder, place):
    put(folder, f"{place}/p_1.png")
    one = {"questionId": 5, "question": "Date?", "image": "documents/p_1.png", "answers": ["1 May", "May 1"]}
    put(folder, "spdocvqa_qas/val_v1.0_withQT.json", {"data": [one]})
    (row,) = rows_of("docvqa", folder, "val")
    assert row.references == ("1 May", "May 1")


def test_scienceqa_leaves_out_questions_without_a_picture(folder):
    put(folder, "images/test/4/image.png")
    one = {
        "question": "Which?", "choices": ["sun", "moon"], "answer": 1, "hint": "H.", "image": "image.png",
        "solution": "S.",
    }  # fmt: skip
    put(folder, "problems.json", {"4": one, "5": {**one, "image": None}})
    put(folder, "pid_splits.json", {"test": ["4", "5"], "train": []})
    (row,) = rows_of("scienceqa", folder, "test")
    assert (row.labels, row.references) == (("sun", "moon"), ("moon",))
    assert row.fields["question"] == "Which?\nA. sun\nB. moon\nAnswer with the letter."
    assert row.fields["context"] == "Question: Which?\nContext: H.\nChoices: sun, moon\n"


def write_parquet(folder, name, records):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), path)


def image(data=TOWER):
    return {"bytes": data, "path": "x.png"}


def test_mmmu(folder):
    base = {f"image_{number}": None for number in range(2, 8)} | {"image_1": image()}
    write_parquet(
        folder,
        "Art/validation-00000-of-00001.parquet",
        [
            {
                **base, "id": "v_1", "question": "Is <image 1> older than <image 2>?", "options": "['yes', 'no']",
                "answer": "B", "question_type": "multiple-choice", "image_2": image(b"second"),
            },
            {**base, "id": "v_2", "question": "How many?", "options": "[]", "answer": "['2', 'two']",
             "question_type": "open"},
        ],
    )  # fmt: skip
    first, second = rows_of("mmmu", folder, "validation")
    assert (first.labels, first.references) == (("A", "B"), ("B",))
    assert [one.read() for one in first.more_media] == [b"second"]
    assert first.media.path != first.more_media[0].path
    assert (
        first.fields["question"] == "Is \0000\0 older than \0001\0?\nA. yes\nB. no\nAnswer with the letter."
    )
    assert (second.labels, second.references) == ((), ("2", "two"))
    assert second.fields["question"] == "\0000\0How many?"


def test_mmstar(folder):
    question = "What?\nOptions: A: a dog, B: a cat, C: a hat"
    record = {"index": 3, "question": question, "image": TOWER, "answer": "C"}
    write_parquet(folder, "val-0.parquet", [record])
    assert len(rows_of("mmstar", folder, "val")) == 1
    write_parquet(folder, "mmstar.parquet", [record])  # as on the hub
    (row,) = rows_of("mmstar", folder, "val")
    assert (row.labels, row.references) == (("A", "B", "C"), ("C",))


def test_mathvista(folder):
    base = {"decoded_image": image(), "image": "images/1.jpg"}
    write_parquet(
        folder,
        "testmini-0.parquet",
        [
            {**base, "pid": "1", "question": "Which?", "choices": ["3", "4"], "answer": "4", "query": "Hint: x\ny"},
            {**base, "pid": "2", "question": "How much?", "choices": None, "answer": "1.2",
             "query": "Hint: Please answer the question requiring a number.\nQuestion: How much?"},
        ],
    )  # fmt: skip
    first, second = rows_of("mathvista", folder, "testmini")
    assert (first.labels, first.references) == (("A", "B"), ("B",))
    assert (second.labels, second.references) == ((), ("1.2",))
    assert second.fields["instruction"] == "Hint: Please answer the question requiring a number."


def test_hateful_memes(folder):
    put(folder, "img/1.png")
    lines = [
        {"id": 1, "img": "img/1.png", "text": "hello", "label": 1},
        {"id": 2, "img": "img/2.png", "text": "x"},
    ]
    put(folder, "test_seen.jsonl", "\n".join(map(json.dumps, lines)).encode())
    first, second = rows_of("hateful_memes", folder, "test_seen")
    assert (first.references, first.fields) == (("yes",), {"text": "hello"})
    assert "has no label" in second.error


def test_rendered_sst2(folder):
    put(folder, "rendered-sst2/test/negative/2.png")
    put(folder, "rendered-sst2/test/positive/1.png")
    assert [row.references for row in rows_of("rendered_sst2", folder, "test")] == [
        ("negative",),
        ("positive",),
    ]


def test_imagenet(folder):
    for name in ("n01440764/b.JPEG", "n01440764/a.JPEG", "n01443537/c.JPEG"):
        put(folder, f"val/{name}")
    text = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    put(folder, "LOC_synset_mapping.txt", text.encode())
    rows = rows_of("imagenet", folder, "val")
    assert [row.references[0] for row in rows] == ["tench", "goldfish", "tench"]  # class by class
    assert {row.references[0] for row in rows} <= set(SUITES["imagenet"].labels)
    assert len(SUITES["imagenet"].labels) == len(set(SUITES["imagenet"].labels)) > 990


def test_visdial(folder):
    put(folder, "VisualDialog_val2018/VisualDialog_val2018_000000000009.jpg")
    rounds = [
        {"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1},
        {"question": 1, "answer": 0, "answer_options": [1, 0], "gt_index": 1},
    ]
    data = {
        "questions": ["is it day", "is it tall"],
        "answers": ["yes", "no"],
        "dialogs": [{"image_id": 9, "caption": "a tower", "dialog": rounds}],
    }
    put(folder, "visdial_1.0_val.json", {"data": data})
    put(
        folder,
        "visdial_1.0_val_dense_annotations.json",
        [{"image_id": 9, "round_id": 2, "gt_relevance": [0.2, 0.8]}],
    )
    (row,) = rows_of("visdial", folder, "val")
    assert row.fields["context"] == "Question: is it day? Answer: no. Question: is it tall? Answer: "
    assert (row.labels, row.relevance, row.references) == (("no", "yes"), (0.2, 0.8), ("yes",))


def test_examples_of_visdial_are_coco_pictures(folder):
    put(folder, "val2014/COCO_val2014_000000000009.jpg")
    round = {"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1}
    dialogs = [{"image_id": 9, "caption": "a tower", "dialog": [round]}]
    put(
        folder,
        "visdial_1.0_train.json",
        {"data": {"questions": ["is it"], "answers": ["a", "b"], "dialogs": dialogs}},
    )
    put(
        folder,
        "visdial_1.0_train_dense_sample.json",
        [{"image_id": 9, "round_id": 1, "relevance": [0, 1]}],
    )
    (row,) = rows_of("visdial", folder, "train")
    assert row.references == ("b",)


def test_winoground(folder):
    for number in (0, 1):
        put(folder, f"images/ex_0_img_{number}.png")
    one = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a b", "caption_1": "b a"}
    put(folder, "examples.jsonl", one)
    first, second = rows_of("winoground", folder, "test")
    assert (first.references, second.references) == (("a b",), ("b a",))
    assert first.labels == second.labels == ("a b", "b a")
    assert first.group == second.group == "0"


def test_easy_vqa(folder):
    put(folder, "data/test/questions.json", [["what?", "red", 0]])
    put(folder, "data/test/images/0.png")
    (row,) = rows_of("easy_vqa", folder, "test")
    assert (row.fields, row.references) == ({"question": "what?"}, ("red",))


@pytest.mark.parametrize("name", [name for name, one in SUITES.items() if one.layout not in ("table",)])
def test_a_folder_of_another_layout_is_refused_in_words(folder, name):
    with pytest.raises(IdeficsError, match=r"no |cannot be read"):
        list(find_layout(SUITES[name].layout)(folder, SUITES[name].split))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, ()),
        ("a", ("a",)),
        (2, ("2",)),
        (4.0, ("4",)),
        (0.5, ("0.5",)),
        (float("nan"), ()),
        ([{"answer": "x"}, "y ", "", 3], ("x", "y", "3")),
    ],
)
def test_lists_of_texts(value, texts):
    assert text_list(value) == texts


@pytest.mark.parametrize("value", [{"text": ["a"]}, [["a"]], [{"text": "a"}], b"a"])
def test_what_is_no_list_of_texts(value):
    with pytest.raises(BadPrompt, match="a right answer is "):
        text_list(value)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("textcaps", "TextCaps_0.1_val.json", {"data": [{"image_id": "a"}]}),  # as the test set
        ("hateful-memes", "test_seen.jsonl", [5]),
        ("scienceqa", "problems.json", []),
        ("winoground", "examples.jsonl", b"\xff\xfe"),
    ],
)
def test_content_of_another_layout_is_refused_in_words(folder, name, file, content):
    put(folder, file, content)
    put(folder, "pid_splits.json", {"train": []})
    data = SuiteData(SUITES[name], str(folder), SUITES[name].split)
    with pytest.raises(BadSetting, match=f"is not laid out as {name} is|cannot be read"):
        list(data.rows())
