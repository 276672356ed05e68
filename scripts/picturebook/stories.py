"""Very short stories that name everything in a picture."""

import random

from .scene import Scene
from .things import CATALOG
from .turns import Sample, assistant, user
from .words import counted, groups, inventory

ASK_STORY = "Use the image to write a story."
WEATHER = {
    False: ("The sun was shining.", "It was a bright day."),
    True: ("The stars were shining.", "It was a dark night."),
}
WISHES = ("wanted to see the world", "looked for a friend", "dreamed of the sea")
ENDINGS_OF_ONE = ("Then came a friend, and all was well.", "In the end it was happy.")
ENDINGS_OF_MANY = ("They played together and all was well.", "In the end they were happy.")


def story(rng: random.Random, scene: Scene) -> str:
    """Four sentences: what there was and where, the time, a wish, and an end."""
    there = groups(scene)
    what, count = there[0]
    are = "was" if count == 1 else "were"
    opening = rng.choice(
        (
            f"Once upon a time, there {are} {inventory(scene)} on {scene.ground} ground.",
            f"Once upon a time, on {scene.ground} ground, there {are} {inventory(scene)}.",
        )
    )
    hero = CATALOG[what].name if count == 1 else CATALOG[what].plural
    wish = f"The {hero} {rng.choice(WISHES)}."
    if len(there) > 1 and rng.random() < 0.5:
        met = counted(*there[1]) if there[1][1] > 1 else CATALOG[there[1][0]].name
        wish = f"The {hero} met the {met}."
    ending = rng.choice(ENDINGS_OF_ONE if len(scene.items) == 1 else ENDINGS_OF_MANY)
    return " ".join((opening, rng.choice(WEATHER[scene.night]), wish, ending))


def story_sample(rng: random.Random, scene: Scene) -> Sample:
    """A picture and a story about it."""
    return Sample("story", (scene,), (user(0, ASK_STORY), assistant(story(rng, scene))))
