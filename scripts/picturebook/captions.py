"""Captions, their completions, and the read-out of the nine cells."""

import random

from .scene import Item, Scene, patch_labels
from .things import CATALOG
from .turns import Sample, assistant, user
from .words import capitalized, joined

DESCRIBE = ("Can you describe this image?", "Describe this image.", "Write a caption for this image.")
BEGINNINGS = ("This is an image of", "This picture shows", "In this image there is", "A photo of")
READ = "Read the grid."


def described(item: Item) -> str:
    """Such as "a small puppy at the top left"."""
    return f"a {item.size} {item.thing.name} {item.place}"


def setting(scene: Scene) -> str:
    """Such as "on green ground at night"."""
    return f"on {scene.ground} ground" + (" at night" if scene.night else "")


def lower_caption(scene: Scene) -> str:
    """The caption as the second half of a sentence."""
    return f"{joined([described(item) for item in scene.items])}, {setting(scene)}."


def caption(scene: Scene) -> str:
    """The one right caption of a scene."""
    return capitalized(lower_caption(scene))


def describing(rng: random.Random) -> str:
    """One of the ways to ask for a caption."""
    return rng.choices(DESCRIBE, (2, 1, 1))[0]


def caption_sample(rng: random.Random, scene: Scene) -> Sample:
    """A picture and its caption."""
    return Sample("caption", (scene,), (user(0, describing(rng)), assistant(caption(scene))))


def completion(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Words that a user may give, and how the assistant goes on."""
    if rng.random() < 0.75:
        return rng.choices(BEGINNINGS, (12, 1, 1, 1))[0], lower_caption(scene)
    words = caption(scene).split(" ")
    cut = rng.randrange(1, len(words))
    return " ".join(words[:cut]), " ".join(words[cut:])


def complete_sample(rng: random.Random, scene: Scene) -> Sample:
    """A picture, the first words of its caption, and the rest of it."""
    given, rest = completion(rng, scene)
    return Sample("complete", (scene,), (user(0, describing(rng)), assistant(rest, given)))


def grid(scene: Scene) -> str:
    """The names of what stands in the nine cells, "none" where nothing does."""
    return ", ".join(CATALOG[what].name for what in patch_labels(scene)) + "."


def readout_sample(rng: random.Random, scene: Scene) -> Sample:
    """A picture and its nine cells."""
    return Sample("readout", (scene,), (user(0, READ), assistant(grid(scene))))
