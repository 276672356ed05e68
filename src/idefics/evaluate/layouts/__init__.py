"""How the folders of data sets are read: each layout yields `EvaluationRow`s of one split, lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

from idefics.evaluate.suite import EvaluationRow

Layout = Callable[[Path, str], Iterator[EvaluationRow]]  # folder, split -> rows

# The module of each layout; its function is `read_` and the layout's name.
_MODULE_BY_LAYOUT = {
    layout: f"idefics.evaluate.layouts.{module}"
    for module, layouts in {
        "texts": (
            "coco_captions nocaps flickr30k textcaps vqav2 okvqa textvqa vizwiz docvqa visdial winoground"
        ),
        "choices": "scienceqa mmmu mmstar mathvista hateful_memes rendered_sst2 imagenet",
        "drawn": "easy_vqa scenes",
    }.items()
    for layout in layouts.split()
}


def find_layout(name: str) -> Layout:
    """The function that reads a layout."""
    return cast("Layout", getattr(import_module(_MODULE_BY_LAYOUT[name]), f"read_{name}"))
