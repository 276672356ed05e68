"""The prompts that the product's tasks send are among those that the demo checkpoints are trained on."""

import random

import numpy as np
import pytest

from idefics import Picture, Shot
from idefics.messages import Message
from idefics.tasks import TASKS, classify
from idefics.tasks.record import compose
from idefics.tasks.write import STORY
from picturebook import make

PICTURE = Picture(np.zeros((96, 96, 3), dtype=np.uint8))
LABELS = ["puppy", "red circle", "ice cream"]


def template(text):
    """A prompt with what changes from scene to scene taken out."""
    head, marker, _ = text.partition("following list: ")
    if marker:
        return head + marker + ("[…]" if "['" in text else "…")
    head, marker, tail = text.partition("Question: ")
    return f"Question: …{tail[tail.index(' Answer:') :]}" if marker else text


def written(items, answer_start=""):
    """A prompt as text, pictures as None."""
    parts = []
    for item in items:
        role = f"{item.role}: " if isinstance(item, Message) else ""
        for part in item.parts if isinstance(item, Message) else [item]:
            parts.append(None if isinstance(part, Picture) else template(role + part.strip(" ")))
    return (*parts, answer_start)


def sample_prompts(*kinds, number=400):
    """All prompts of some kinds of samples; a question's own words and shots' answers left out."""
    rng, found = random.Random(1), set()
    for kind in kinds:
        for _ in range(number):
            sample = make(rng, "train", kind)
            turns = sample.turns[:-1]
            items = []
            for turn in turns:
                parts = tuple(part if isinstance(part, str) else PICTURE for part in turn.parts)
                shot = (f"{turn.given} {parts[0]}".strip(),) if turn.role == "assistant" else parts
                items += parts if sample.raw else [Message(turn.role, shot)]
            found.add(written(items, sample.turns[-1].given))
    return found


def task_prompt(kind, name, words="", shots=()):
    composed = compose(TASKS[name], kind, PICTURE, words, shots)
    return written(composed.items, composed.answer_start)


BEGINNING = "This is an image of"
CASES = [
    ("chat", "caption", "", "caption"),
    ("chat", "complete", BEGINNING, "complete"),
    ("chat", "ask", "What is in this image?", "question/what"),
    ("chat", "classify", classify.worded(LABELS, "chat")[1], "classify"),
    ("chat", "write", STORY, "story"),
    ("base", "caption", "", "raw/caption"),
    ("base", "complete", BEGINNING, "raw/complete"),
    ("base", "ask", "What is in this image?", "raw/ask"),
    ("base", "classify", classify.worded(LABELS, "base")[1], "raw/classify"),
    ("base", "write", STORY, "raw/story"),
]


@pytest.mark.parametrize(("kind", "name", "words", "samples"), CASES)
def test_every_task_is_worded_as_in_training(kind, name, words, samples):
    assert task_prompt(kind, name, words) in sample_prompts(samples)


def test_every_task_is_tried():
    assert {name for _, name, _, _ in CASES} == set(TASKS)


def test_shots_are_worded_as_in_training():
    """The turns before the last are as trained, whatever the shots answer."""
    shots = [Shot(PICTURE, "1 puppy"), Shot(PICTURE, "2 tulips")]
    asked = {prompt[0:2] for prompt in sample_prompts("shots/counted", number=60)}
    for name, words in (("caption", ""), ("ask", "Describe this image.")):
        prompt = task_prompt("chat", name, words, shots)
        assert prompt[:2] == prompt[3:5] == prompt[6:8]
        assert prompt[0:2] in asked
        assert prompt[2] == "assistant: 1 puppy"
        assert len(prompt) == 9


def test_many_labels_are_asked_as_a_question_in_training():
    """Beyond what a prompt lists, the labels are ranked as answers to a plain question."""
    task, words = classify.worded([f"label {number}" for number in range(21)], "chat")
    composed = compose(task, "chat", PICTURE, words)
    assert written(composed.items, composed.answer_start) in sample_prompts("question/what")
