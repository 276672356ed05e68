"""The example pictures bundled with the demo checkpoints: `python -m picturebook.examples FOLDER`."""

import argparse
from pathlib import Path

from PIL import Image

from .drawing import draw
from .scene import Item, Scene, Size
from .things import class_of

SIDE = 384


def _item(name: str, cell: int, size: Size = "large", angle: int = 0, mirrored: bool = False) -> Item:
    return Item(class_of(name), cell, size, mirrored, angle)


EXAMPLES: dict[str, Scene] = {
    "puppy": Scene(
        "green",
        "graded",
        False,
        (_item("tulip", 3), _item("puppy", 4), _item("tulip", 6, "small", 10), _item("rose", 8)),
        seed=3,
    ),
    "tower": Scene("blue", "graded", True, (_item("tower", 4),), seed=5),
    "statue": Scene("blue", "graded", False, (_item("statue", 4),), seed=3),
    "picnic": Scene(
        "green",
        "graded",
        False,
        (_item("couple", 1), _item("basket", 3, "small"), _item("sandwich", 7, "large", 10)),
        seed=11,
    ),
    "vegetables": Scene(
        "brown",
        "graded",
        False,
        (_item("tomato", 1), _item("corn cob", 3), _item("carrot", 5, "large", -10), _item("eggplant", 7)),
        seed=2,
    ),
    "door": Scene("gray", "graded", True, (_item("door", 4), _item("pumpkin", 6, "small")), seed=8),
    "shapes": Scene(
        "yellow",
        "plain",
        False,
        (_item("red circle", 0), _item("blue square", 4, "small", 10), _item("green star", 7, "large", -10)),
    ),
}


def write(folder: Path) -> list[Path]:
    """Draw every example into a folder as a PNG; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, scene in EXAMPLES.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(draw(scene, SIDE)).save(paths[-1], optimize=True)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the bundled example pictures.")
    parser.add_argument("folder", type=Path)
    for path in write(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
