"""The prompts of the package's tasks are among those that the demo checkpoints are trained on."""

import random

import numpy as np
import pytest

from idefics import Picture, Shot
from idefics.messages import Message
from idefics.tasks import TASKS, classify
from idefics.tasks.task import compose_task_prompt
from idefics.tasks.write import STORY
from picturebook import make_sample

PICTURE = Picture(np.zeros((96, 96, 3), dtype=np.uint8))
LABELS = ["puppy", "red circle", "ice cream"]


def prompt_template(text):
    """A prompt without the words that depend on the scene."""
    head, marker, _ = text.partition("following list: ")
    if marker:
        return head + marker + ("[…]" if "['" in text else "…")
    head, marker, tail = text.partition("Question: ")
    return f"Question: …{tail[tail.index(' Answer:') :]}" if marker else text


def render_items(items, answer_start=""):
    """A prompt as text, pictures as None."""
    parts = []
    for item in items:
        role = f"{item.role}: " if isinstance(item, Message) else ""
        for part in item.parts if isinstance(item, Message) else [item]:
            parts.append(None if isinstance(part, Picture) else prompt_template(role + part.strip(" ")))
    return (*parts, answer_start)


def collect_sample_templates(*kinds, number=400):
    """The templates of all prompts of some kinds of samples."""
    rng, found = random.Random(1), set()
    for kind in kinds:
        for _ in range(number):
            sample = make_sample(rng, "train", kind)
            turns = sample.turns[:-1]
            items = []
            for turn in turns:
                parts = tuple(part if isinstance(part, str) else PICTURE for part in turn.parts)
                shot = (f"{turn.answer_prefix} {parts[0]}".strip(),) if turn.role == "assistant" else parts
                items += parts if sample.is_raw_prompt else [Message(turn.role, shot)]
            found.add(render_items(items, sample.turns[-1].answer_prefix))
    return found


def make_task_template(kind, name, words="", shots=()):
    composed = compose_task_prompt(TASKS[name], kind, PICTURE, words, shots)
    return render_items(composed.items, composed.answer_start)


CAPTION_PREFIX = "This is an image of"
CASES = [
    ("chat", "caption", "", "caption"),
    ("chat", "complete", CAPTION_PREFIX, "complete"),
    ("chat", "ask", "What is in this image?", "question/what"),
    ("chat", "classify", classify.task_and_label_text(LABELS, "chat")[1], "classify"),
    ("chat", "write", STORY, "story"),
    ("base", "caption", "", "raw/caption"),
    ("base", "complete", CAPTION_PREFIX, "raw/complete"),
    ("base", "ask", "What is in this image?", "raw/ask"),
    ("base", "classify", classify.task_and_label_text(LABELS, "base")[1], "raw/classify"),
    ("base", "write", STORY, "raw/story"),
]


@pytest.mark.parametrize(("kind", "name", "words", "samples"), CASES)
def test_every_task_is_worded_as_in_training(kind, name, words, samples):
    assert make_task_template(kind, name, words) in collect_sample_templates(samples)


def test_every_task_has_a_case():
    assert {name for _, name, _, _ in CASES} == {
        name for name, task in TASKS.items() if not task.needs_doctags
    }


def test_shots_are_worded_as_in_training():
    """The turns before the last one are as in training."""
    shots = [Shot(PICTURE, "1 puppy"), Shot(PICTURE, "2 tulips")]
    asked = {prompt[0:2] for prompt in collect_sample_templates("shots/counted", number=60)}
    for name, words in (("caption", ""), ("ask", "Describe this image.")):
        prompt = make_task_template("chat", name, words, shots)
        assert prompt[:2] == prompt[3:5] == prompt[6:8]
        assert prompt[0:2] in asked
        assert prompt[2] == "assistant: 1 puppy"
        assert len(prompt) == 9


def test_many_labels_use_a_plain_question_of_training():
    """More labels than a prompt lists are ranked as answers to a plain question."""
    task, words = classify.task_and_label_text([f"label {number}" for number in range(21)], "chat")
    composed = compose_task_prompt(task, "chat", PICTURE, words)
    assert render_items(composed.items, composed.answer_start) in collect_sample_templates("question/what")
