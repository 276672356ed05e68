"""Samples of captions, completed captions and read-outs of the nine cells."""

import random

from .scene import Scene, SceneItem, cell_class_ids
from .things import CATALOG
from .turns import ConversationSample, assistant_turn, user_turn
from .words import capitalize, join_words

CAPTION_REQUESTS = ("Can you describe this image?", "Describe this image.", "Write a caption for this image.")
CAPTION_PREFIXES = ("This is an image of", "This picture shows", "In this image there is", "A photo of")
READ_GRID_REQUEST = "Read the grid."


def item_phrase(item: SceneItem) -> str:
    """Such as "a small puppy at the top left"."""
    return f"a {item.size} {item.thing.name} {item.position_phrase}"


def setting_phrase(scene: Scene) -> str:
    """Such as "on green ground at night"."""
    return f"on {scene.ground} ground" + (" at night" if scene.is_night else "")


def caption_clause(scene: Scene) -> str:
    """The caption without a capital letter, to follow a prefix."""
    return f"{join_words([item_phrase(item) for item in scene.items])}, {setting_phrase(scene)}."


def caption_sentence(scene: Scene) -> str:
    """The caption of a scene; there is exactly one."""
    return capitalize(caption_clause(scene))


def choose_caption_request(rng: random.Random) -> str:
    """A random request for a caption."""
    return rng.choices(CAPTION_REQUESTS, (2, 1, 1))[0]


def make_caption_sample(rng: random.Random, scene: Scene) -> ConversationSample:
    """A picture and its caption."""
    return ConversationSample(
        "caption",
        (scene,),
        (user_turn(0, choose_caption_request(rng)), assistant_turn(caption_sentence(scene))),
    )


def split_caption(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """(prefix given by the user, the rest of the caption)."""
    if rng.random() < 0.75:
        return rng.choices(CAPTION_PREFIXES, (12, 1, 1, 1))[0], caption_clause(scene)
    words = caption_sentence(scene).split(" ")
    cut = rng.randrange(1, len(words))
    return " ".join(words[:cut]), " ".join(words[cut:])


def make_complete_sample(rng: random.Random, scene: Scene) -> ConversationSample:
    """A picture, the first words of its caption, and the rest of it."""
    prefix, rest = split_caption(rng, scene)
    return ConversationSample(
        "complete", (scene,), (user_turn(0, choose_caption_request(rng)), assistant_turn(rest, prefix))
    )


def grid_text(scene: Scene) -> str:
    """The names of the contents of the nine cells, "none" for an empty one."""
    return ", ".join(CATALOG[what].name for what in cell_class_ids(scene)) + "."


def make_readout_sample(rng: random.Random, scene: Scene) -> ConversationSample:
    """A picture and its nine cells."""
    return ConversationSample(
        "readout", (scene,), (user_turn(0, READ_GRID_REQUEST), assistant_turn(grid_text(scene)))
    )
