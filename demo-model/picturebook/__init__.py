"""The picture book: drawn scenes with texts about them, the data that trains and evaluates the demo checkpoints."""

from .drawing import draw_scene
from .samples import DETAILED_KINDS, WEIGHT_BY_KIND, iterate_texts, make_sample
from .scene import Scene, SceneItem, Split, cell_class_ids, is_held_out_scene, sample_scene
from .things import CATALOG, NUM_CLASSES, THINGS, Thing, class_id_of
from .turns import ConversationSample, ConversationTurn

__all__ = [
    "CATALOG",
    "NUM_CLASSES",
    "DETAILED_KINDS",
    "WEIGHT_BY_KIND",
    "THINGS",
    "SceneItem",
    "ConversationSample",
    "Scene",
    "Split",
    "Thing",
    "ConversationTurn",
    "class_id_of",
    "iterate_texts",
    "draw_scene",
    "is_held_out_scene",
    "make_sample",
    "cell_class_ids",
    "sample_scene",
]
