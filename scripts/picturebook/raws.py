"""Prompts for base models, with no chat template: parts, and how the text goes on after them.

A space belongs between the parts and the continuation, unless the last part ends in white space or is a
picture.
"""

import random
from collections.abc import Callable

from .captions import caption, completion
from .labels import choose_labels
from .questions import any_question
from .scene import Scene, Split, sample
from .shots import FACT, choose_form, shot_scenes
from .stories import story
from .turns import Sample, assistant, user


def _raw(name: str, scenes: tuple[Scene, ...], parts: tuple[str | int, ...], answer: str) -> Sample:
    return Sample(f"raw/{name}", scenes, (user(*parts), assistant(answer)), raw=True)


def _caption(rng: random.Random, split: Split) -> Sample:
    scene = sample(rng, split)
    return _raw("caption", (scene,), (0,), caption(scene))


def _complete(rng: random.Random, split: Split) -> Sample:
    scene = sample(rng, split)
    given, rest = completion(rng, scene)
    return _raw("complete", (scene,), (0, given + rng.choice((" ", " ", ""))), rest)


def _ask(rng: random.Random, split: Split) -> Sample:
    scene = sample(rng, split)
    question, answer = any_question(rng, scene)
    instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
    return _raw("ask", (scene,), (instruction, 0, f"Question: {question} Answer:"), answer)


def _classify(rng: random.Random, split: Split) -> Sample:
    scene = sample(rng, split)
    found = choose_labels(rng, scene)
    listed = ", ".join(f"'{label}'" for label in found.labels)
    order = "Instruction: Classify the following image into a single category from the following list:"
    return _raw("classify", (scene,), (f"{order} [{listed}].\n", 0, "Category: "), found.right)


def _story(rng: random.Random, split: Split) -> Sample:
    scene = sample(rng, split)
    parts = ("Instruction: Use the image to write a story. \n", 0, "Story: \n")
    return _raw("story", (scene,), parts, story(rng, scene))


def _shots(rng: random.Random, split: Split) -> Sample:
    """Shots mostly in the form of the guides, "An image of ... Fun fact: ..."."""
    form = FACT if rng.random() < 0.6 else choose_form(rng)[1]
    shots = rng.randint(1, 3)
    scenes = shot_scenes(rng, split, form, shots)
    parts: list[str | int] = []
    for index, scene in enumerate(scenes[:shots]):
        parts += ["User:", index, f"Describe this image.\nAssistant: {form(scene)}\n"]
    parts += ["User:", shots, "Describe this image.\nAssistant:"]
    return _raw("shots", scenes, tuple(parts), form(scenes[shots]))


RAW: dict[str, tuple[float, Callable[[random.Random, Split], Sample]]] = {
    "caption": (1.0, _caption),
    "complete": (1.0, _complete),
    "ask": (2.0, _ask),
    "classify": (1.0, _classify),
    "story": (0.7, _story),
    "shots": (1.5, _shots),
}


def raw_sample(rng: random.Random, split: Split, name: str | None = None) -> Sample:
    """A base model's prompt of one sort, and its continuation."""
    name = name or rng.choices(tuple(RAW), tuple(weight for weight, _ in RAW.values()))[0]
    return RAW[name][1](rng, split)
