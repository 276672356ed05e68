"""Suites and tables as training data: the prompts are those of their evaluation."""

import json

import PIL.Image
import PIL.ImageFile
import pytest

from idefics.evaluate.answerer import make_prompt_items
from idefics.evaluate.prompt_style import own_style
from idefics.evaluate.prompts import SuitePrompts
from idefics.evaluate.shots import PictureContents
from idefics.evaluate.suite_data import SuiteData
from idefics.evaluate.suites import SUITES
from idefics.generation.prompts import make_prompt
from idefics.messages import Picture
from train.training_data import (
    ANSWER,
    CHAT,
    CHAT_MODEL,
    FAMILIES,
    QUESTION,
    prefix,
    write_rows,
)


@pytest.fixture
def easy_vqa(pictures):
    """A folder as easy-VQA has it: two questions about two pictures, for training and for tests."""
    for split, answers in (("train", ("red", "yes")), ("test", ("blue", "no"))):
        images = pictures / "easy" / "data" / split / "images"
        images.mkdir(parents=True)
        for number in (0, 1):
            PIL.Image.new("RGB", (64, 64), (200, number, 0)).save(images / f"{number}.png")
        questions = [["what color?", answers[0], 0], ["is it red?", answers[1], 1], ["a circle?", "no", 1]]
        (images.parent / "questions.json").write_text(json.dumps(questions))
    return pictures / "easy"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_suite_is_learned_with_the_prompts_of_its_evaluation(get_checkpoint, easy_vqa, name):
    checkpoint = get_checkpoint(name)
    read = checkpoint.read(f"easy-vqa:{easy_vqa}")
    assert [read[index].name for index in range(3)] == [f"easy-vqa/train#{number}" for number in range(3)]
    answers = [checkpoint.learned(read[index])[0].strip() for index in range(3)]
    end = checkpoint.text(read[0].ids[-1:])
    assert answers == [f"red{end}", f"yes{end}", f"no{end}"]
    assert read[1].picture_keys == read[2].picture_keys != read[0].picture_keys
    assert checkpoint.learned(checkpoint.read(f"easy-vqa:{easy_vqa}:test")[0])[0].strip() == f"blue{end}"
    suite = SUITES["easy-vqa"]
    assert [prefix(read[index]) for index in range(3)] == [
        evaluation_prompt(checkpoint, suite, row).ids
        for row in SuiteData(suite, str(easy_vqa), "train").rows()
    ]


def evaluation_prompt(checkpoint, suite, row):
    """The prompt of a row as `idefics eval` makes it without the authors' prompts."""
    kind = checkpoint.processor.prompt_format.kind
    style = own_style(suite, kind, has_shots=False)
    request = SuitePrompts(suite, style, style, kind, None, 0, PictureContents()).make_request(row)
    items = make_prompt_items(request, {"": Picture(row.media.file)}, checkpoint.processor)
    return make_prompt(checkpoint.processor, items)


@pytest.mark.parametrize("name", ["9b", *CHAT])
def test_a_table_is_learned_with_the_prompts_of_its_evaluation(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    for row in (
        {"image": "wide.png", "question": QUESTION, "answer": ANSWER},
        {"image": "wide.png", "caption": "A cat."},
    ):
        path = write_rows(pictures / "rows.jsonl", row)
        data = SuiteData(SUITES["folder"], str(path), "")
        suite = data.resolve_suite(data.rows())
        (evaluated,) = data.rows()
        (read,) = checkpoint.read(path)
        assert prefix(read) == evaluation_prompt(checkpoint, suite, evaluated).ids


def test_the_bundled_scenes_can_be_learned(get_checkpoint):
    checkpoint = get_checkpoint("9b-instruct")
    read = checkpoint.read("demo")
    assert read[0].name.startswith("demo/train")
    assert all(read[index].num_targets for index in range(len(read)))


def test_every_caption_of_a_suite_is_a_row(get_checkpoint, pictures):
    """With the authors' prompts, which evaluation takes for this kind of checkpoint."""
    images = [
        {
            "filename": "wide.png",
            "filepath": ".",
            "split": "train",
            "sentids": [1, 2],
            "cocoid": 7,
            "sentences": [{"raw": "A wide one."}, {"raw": "Another."}],
        }
    ]
    (pictures / "dataset_coco.json").write_text(json.dumps({"images": images}))
    checkpoint = get_checkpoint("9b-instruct")
    read = checkpoint.read(f"coco:{pictures}")
    texts = [
        checkpoint.text(read[index].ids).rpartition("<fake_token_around_image> ")[2]
        for index in range(len(read))
    ]
    assert texts == [
        f"Describe the image briefly.<end_of_utterance> \nAssistant: {caption}<end_of_utterance>"
        for caption in ("A wide one.", "Another.")
    ]
    assert [read[index].name.rpartition(", ")[2] for index in (0, 1)] == ["caption 1", "caption 2"]


@pytest.mark.parametrize("name", ["9b", CHAT_MODEL])
def test_the_right_label_of_a_suite_is_learned(get_checkpoint, pictures, name):
    for label in ("negative", "positive"):
        (pictures / "train" / label).mkdir(parents=True)
        PIL.Image.new("RGB", (40, 30)).save(pictures / "train" / label / "1.png")
    checkpoint = get_checkpoint(name)
    read = checkpoint.read(f"rendered-sst2:{pictures}")
    learned = [checkpoint.learned(read[index])[0].strip() for index in range(len(read))]
    end = checkpoint.text(read[0].ids[-1:])
    assert learned == [f"negative.{end}", f"positive.{end}"]  # the full stop is of the authors' prompt
