"""Samples of raw prompts for base models, without a chat template: parts, and their continuation.

A space belongs between the parts and the continuation, unless the last part ends in white space or is a
picture.
"""

import random
from collections.abc import Callable

from .captions import caption_sentence, split_caption
from .labels import choose_labels
from .questions import choose_question
from .scene import Scene, Split, sample_scene
from .shots import FACT_FORM, choose_form, sample_shot_scenes
from .stories import write_story
from .turns import ConversationSample, assistant_turn, user_turn


def _make_sample(
    name: str, scenes: tuple[Scene, ...], parts: tuple[str | int, ...], answer: str
) -> ConversationSample:
    return ConversationSample(
        f"raw/{name}", scenes, (user_turn(*parts), assistant_turn(answer)), is_raw_prompt=True
    )


def _caption(rng: random.Random, split: Split) -> ConversationSample:
    scene = sample_scene(rng, split)
    return _make_sample("caption", (scene,), (0,), caption_sentence(scene))


def _complete(rng: random.Random, split: Split) -> ConversationSample:
    scene = sample_scene(rng, split)
    prefix, rest = split_caption(rng, scene)
    return _make_sample("complete", (scene,), (0, prefix + rng.choice((" ", " ", ""))), rest)


def _ask(rng: random.Random, split: Split) -> ConversationSample:
    scene = sample_scene(rng, split)
    question, answer = choose_question(rng, scene)
    instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
    return _make_sample("ask", (scene,), (instruction, 0, f"Question: {question} Answer:"), answer)


def _classify(rng: random.Random, split: Split) -> ConversationSample:
    scene = sample_scene(rng, split)
    label_choice = choose_labels(rng, scene)
    label_list = ", ".join(f"'{label}'" for label in label_choice.labels)
    instruction = "Instruction: Classify the following image into a single category from the following list:"
    return _make_sample(
        "classify",
        (scene,),
        (f"{instruction} [{label_list}].\n", 0, "Category: "),
        label_choice.correct_label,
    )


def _story(rng: random.Random, split: Split) -> ConversationSample:
    scene = sample_scene(rng, split)
    parts = ("Instruction: Use the image to write a story. \n", 0, "Story: \n")
    return _make_sample("story", (scene,), parts, write_story(rng, scene))


def _shots(rng: random.Random, split: Split) -> ConversationSample:
    """Shots, mostly in the form of the published guides: "An image of ... Fun fact: ..."."""
    form = FACT_FORM if rng.random() < 0.6 else choose_form(rng)[1]
    shots = rng.randint(1, 3)
    scenes = sample_shot_scenes(rng, split, form, shots)
    parts: list[str | int] = []
    for index, scene in enumerate(scenes[:shots]):
        parts += ["User:", index, f"Describe this image.\nAssistant: {form(scene)}\n"]
    parts += ["User:", shots, "Describe this image.\nAssistant:"]
    return _make_sample("shots", scenes, tuple(parts), form(scenes[shots]))


WEIGHT_AND_SAMPLER_BY_NAME: dict[str, tuple[float, Callable[[random.Random, Split], ConversationSample]]] = {
    "caption": (1.0, _caption),
    "complete": (1.0, _complete),
    "ask": (2.0, _ask),
    "classify": (1.0, _classify),
    "story": (0.7, _story),
    "shots": (1.5, _shots),
}


def make_raw_sample(rng: random.Random, split: Split, name: str | None = None) -> ConversationSample:
    """A sample of one sort: a raw prompt and its continuation."""
    name = (
        name
        or rng.choices(
            tuple(WEIGHT_AND_SAMPLER_BY_NAME),
            tuple(weight for weight, _ in WEIGHT_AND_SAMPLER_BY_NAME.values()),
        )[0]
    )
    return WEIGHT_AND_SAMPLER_BY_NAME[name][1](rng, split)
