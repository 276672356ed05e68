"""The picture-book world: drawn scenes, and what is said of them, to train and test the demo checkpoints."""

from .drawing import draw
from .language import DETAILED_KINDS, MIX, corpus, make
from .scene import Item, Scene, Split, held_out, patch_labels, sample
from .things import CATALOG, CELL_CLASSES, THINGS, Thing, class_of
from .turns import Sample, Turn

__all__ = [
    "CATALOG",
    "CELL_CLASSES",
    "DETAILED_KINDS",
    "MIX",
    "THINGS",
    "Item",
    "Sample",
    "Scene",
    "Split",
    "Thing",
    "Turn",
    "class_of",
    "corpus",
    "draw",
    "held_out",
    "make",
    "patch_labels",
    "sample",
]
