"""The example pictures bundled with the demo checkpoints: `python -m picturebook.examples FOLDER`."""

import argparse
from pathlib import Path

from PIL import Image

from .drawing import draw_scene
from .scene import Scene, SceneItem, Size
from .things import class_id_of

IMAGE_SIZE = 384


def _make_item(
    name: str, cell: int, size: Size = "large", angle: int = 0, is_mirrored: bool = False
) -> SceneItem:
    return SceneItem(class_id_of(name), cell, size, is_mirrored, angle)


EXAMPLE_SCENES: dict[str, Scene] = {
    "puppy": Scene(
        "green",
        "graded",
        False,
        (
            _make_item("tulip", 3),
            _make_item("puppy", 4),
            _make_item("tulip", 6, "small", 10),
            _make_item("rose", 8),
        ),
        seed=3,
    ),
    "tower": Scene("blue", "graded", True, (_make_item("tower", 4),), seed=5),
    "statue": Scene("blue", "graded", False, (_make_item("statue", 4),), seed=3),
    "picnic": Scene(
        "green",
        "graded",
        False,
        (_make_item("couple", 1), _make_item("basket", 3, "small"), _make_item("sandwich", 7, "large", 10)),
        seed=11,
    ),
    "vegetables": Scene(
        "brown",
        "graded",
        False,
        (
            _make_item("tomato", 1),
            _make_item("corn cob", 3),
            _make_item("carrot", 5, "large", -10),
            _make_item("eggplant", 7),
        ),
        seed=2,
    ),
    "door": Scene("gray", "graded", True, (_make_item("door", 4), _make_item("pumpkin", 6, "small")), seed=8),
    "shapes": Scene(
        "yellow",
        "plain",
        False,
        (
            _make_item("red circle", 0),
            _make_item("blue square", 4, "small", 10),
            _make_item("green star", 7, "large", -10),
        ),
    ),
}


def write_pictures(folder: Path) -> list[Path]:
    """Draws every example into a folder as PNG, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, scene in EXAMPLE_SCENES.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(draw_scene(scene, IMAGE_SIZE)).save(paths[-1], optimize=True)
    return paths


def main() -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(description="Draw the bundled example pictures.")
    parser.add_argument("folder", type=Path)
    for path in write_pictures(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
