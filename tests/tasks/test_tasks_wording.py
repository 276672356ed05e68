"""The prompts of the tasks for chat and base checkpoints, few-shot examples included."""

import re

import pytest

from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Message, Picture, Shot, assistant, user
from idefics.tasks import TASKS, classify
from idefics.tasks.shots import read_shots
from idefics.tasks.task import compose_task_prompt

PHOTO, OTHER = Picture("photo.jpg"), Picture("other.jpg")


def test_every_task_has_a_name_and_both_wordings():
    assert list(TASKS) == ["caption", "complete", "ask", "classify", "write", "read"]
    for name, task in TASKS.items():
        assert task.name == name and task.help.endswith(".")
        assert compose_task_prompt(task, "chat", PHOTO, "words").items[0].parts[0] is PHOTO
        assert PHOTO in compose_task_prompt(task, "base", PHOTO, "words").items


def test_a_caption_of_a_base_checkpoint_needs_no_words():
    assert compose_task_prompt(TASKS["caption"], "base", PHOTO).items == [PHOTO]


def test_shots_of_a_base_checkpoint_are_text_before_the_prompt():
    items = compose_task_prompt(TASKS["caption"], "base", PHOTO, shots=[Shot(OTHER, "A cat.")]).items
    assert items == [OTHER, "Caption: A cat.\n", PHOTO, "Caption:"]


def test_shots_of_a_chat_checkpoint_are_turns_before():
    composed = compose_task_prompt(
        TASKS["ask"], "chat", PHOTO, "How many?", [Shot(OTHER, "Two."), Shot(OTHER, "Red.", "Colour?")]
    )
    assert composed.items == [
        user(OTHER, "How many?"),
        assistant("Two."),
        user(OTHER, "Colour?"),
        assistant("Red."),
        user(PHOTO, "How many?"),
    ]


def test_a_base_checkpoint_gets_the_guide_s_question():
    assert compose_task_prompt(TASKS["ask"], "base", PHOTO, "Where are they?").items == [
        "Instruction: Provide an answer to the question. Use the image to answer.\n",
        PHOTO,
        "Question: Where are they? Answer:",
    ]


def test_a_base_checkpoint_gets_the_guide_s_story():
    from idefics.tasks.write import STORY

    assert compose_task_prompt(TASKS["write"], "base", PHOTO, STORY).items == [
        "Instruction: Use the image to write a story. \n",
        PHOTO,
        "Story: \n",
    ]


def test_completion_begins_the_answer():
    composed = compose_task_prompt(TASKS["complete"], "chat", PHOTO, "This is", [Shot(OTHER, "a cat.")])
    assert composed.answer_start == "This is"
    assert composed.items[1] == assistant("This is a cat.")
    assert compose_task_prompt(TASKS["complete"], "base", PHOTO, "This is").items == [PHOTO, "This is"]


def test_words_with_braces_are_not_formatted():
    assert compose_task_prompt(TASKS["ask"], "chat", PHOTO, "{words} {0}?").items == [
        Message("user", (PHOTO, "{words} {0}?"))
    ]
    assert compose_task_prompt(TASKS["complete"], "chat", PHOTO, "{x").answer_start == "{x"


def test_up_to_twenty_labels_are_listed_as_the_guide_lists_them():
    labels = ["animals", "city landscape"]
    task, words = classify.task_and_label_text(labels, "base")
    order = "Instruction: Classify the following image into a single category from the following list:"
    listed = f"{order} ['animals', 'city landscape'].\n"
    assert compose_task_prompt(task, "base", PHOTO, words).items == [listed, PHOTO, "Category:"]
    task, words = classify.task_and_label_text(labels, "chat")
    assert (
        "list: animals, city landscape." in compose_task_prompt(task, "chat", PHOTO, words).items[0].parts[1]
    )
    many = [f"label {number}" for number in range(21)]
    assert classify.task_and_label_text(many, "chat") == (classify.UNLISTED_TASK, "")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat"], "1 label given; classification needs 2 to 1000"),
        ([], "0 labels given"),
        (["cat", " "], "a label is blank"),
        (["cat", "dog", "cat "], "labels given twice: cat"),
        ("cat,dog", "labels is the text 'cat,dog': give a list"),
    ],
)
def test_wrong_labels_are_refused_with_a_remedy(labels, message):
    with pytest.raises(BadSetting, match=re.escape(message)):
        classify.check_and_strip_labels(labels)


def test_scores_are_sums_means_or_gains_over_a_neutral_picture():
    logprobs, prior = [[-1.0, -1.0], [-1.5]], [[-0.5, -0.5], [-2.5]]
    assert classify.score_labels(logprobs, None, length_normalized=False) == [-2.0, -1.5]
    assert classify.score_labels(logprobs, None, length_normalized=True) == [-1.0, -1.5]
    assert classify.score_labels(logprobs, prior, length_normalized=False) == [-1.0, 1.0]
    assert classify.softmax([0.0, 0.0]) == [0.5, 0.5]
    assert sum(classify.softmax([-800.0, -801.0, -900.0])) == pytest.approx(1)


def test_shot_pictures_are_found_relative_to_their_file(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(
        '{"image": "a.png", "answer": "A cat."}\n\n{"image": "https://x.org/b.png", "answer": "B"}\n'
    )
    first, second = read_shots(path)
    assert first.picture.source == tmp_path / "a.png" and first.answer == "A cat." and first.question == ""
    assert second.picture.source == "https://x.org/b.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "line 1 is not JSON"),
        ('{"image": "a.png"}', 'line 1 needs an "image" and an "answer"'),
        ('{"image": "a.png", "answer": "x", "answr": "y"}', "unknown fields answr"),
        ("", "holds 0 shots; give 1 to 32"),
    ],
)
def test_wrong_shots_are_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "shots.jsonl"
    path.write_text(text)
    with pytest.raises(BadPrompt, match=re.escape(message)):
        read_shots(path)


def test_a_missing_file_of_shots_is_named(tmp_path):
    with pytest.raises(BadPrompt, match=r"none\.jsonl"):
        read_shots(tmp_path / "none.jsonl")
