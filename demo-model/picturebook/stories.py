"""Samples of very short stories that name everything in a picture."""

import random

from .scene import Scene
from .things import CATALOG
from .turns import ConversationSample, assistant_turn, user_turn
from .words import count_by_class, count_phrase, inventory_phrase

STORY_REQUEST = "Use the image to write a story."
WEATHER_SENTENCES_BY_NIGHT = {
    False: ("The sun was shining.", "It was a bright day."),
    True: ("The stars were shining.", "It was a dark night."),
}
HERO_ACTIONS = ("wanted to see the world", "looked for a friend", "dreamed of the sea")
LAST_SENTENCES_SINGULAR = ("Then came a friend, and all was well.", "In the end it was happy.")
LAST_SENTENCES_PLURAL = ("They played together and all was well.", "In the end they were happy.")


def write_story(rng: random.Random, scene: Scene) -> str:
    """Four sentences: the things and the ground, day or night, an action, an ending."""
    class_counts = count_by_class(scene)
    class_id, count = class_counts[0]
    verb = "was" if count == 1 else "were"
    opening = rng.choice(
        (
            f"Once upon a time, there {verb} {inventory_phrase(scene)} on {scene.ground} ground.",
            f"Once upon a time, on {scene.ground} ground, there {verb} {inventory_phrase(scene)}.",
        )
    )
    hero = CATALOG[class_id].name if count == 1 else CATALOG[class_id].plural
    action_sentence = f"The {hero} {rng.choice(HERO_ACTIONS)}."
    if len(class_counts) > 1 and rng.random() < 0.5:
        other_thing = (
            count_phrase(*class_counts[1]) if class_counts[1][1] > 1 else CATALOG[class_counts[1][0]].name
        )
        action_sentence = f"The {hero} met the {other_thing}."
    last_sentence = rng.choice(LAST_SENTENCES_SINGULAR if len(scene.items) == 1 else LAST_SENTENCES_PLURAL)
    return " ".join(
        (opening, rng.choice(WEATHER_SENTENCES_BY_NIGHT[scene.is_night]), action_sentence, last_sentence)
    )


def make_story_sample(rng: random.Random, scene: Scene) -> ConversationSample:
    """A picture and a story about it."""
    return ConversationSample(
        "story", (scene,), (user_turn(0, STORY_REQUEST), assistant_turn(write_story(rng, scene)))
    )
