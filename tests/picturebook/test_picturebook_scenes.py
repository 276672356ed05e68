"""The picture-book world: scenes and their drawing."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from picturebook import (
    CATALOG,
    CELL_CLASSES,
    THINGS,
    Item,
    Scene,
    class_of,
    draw,
    held_out,
    patch_labels,
    sample,
)
from picturebook import split as held
from picturebook.drawing import FONT
from picturebook.examples import EXAMPLES, write
from picturebook.scene import ROOM, is_visible
from picturebook.things import COLORS, FIRST_SHAPE, GROUNDS, SHAPES, is_shape, shape_and_color

needs_font = pytest.mark.skipif(not FONT.is_file(), reason="needs the package fonts-noto-color-emoji")


def scenes(split, number=1500, seed=1, **wishes):
    rng = random.Random(seed)
    return [sample(rng, split, **wishes) for _ in range(number)]


def combinations(scene):
    """All that might be held out of a scene, written out by hand."""
    for item in scene.items:
        yield ("place", item.what, item.cell)
        yield ("ground", item.what, scene.ground)
        if is_shape(item.what):
            yield ("pair", item.what)
    for what, count in Counter(item.what for item in scene.items).items():
        if count > 1:
            yield ("count", what, count)


def test_training_never_shows_what_evaluation_always_does():
    trained = {combination for scene in scenes("train", 20_000) for combination in combinations(scene)}
    for scene in scenes("held-out"):
        assert held_out(scene)
        assert any(combination not in trained for combination in combinations(scene))
    assert not any(held_out(scene) for scene in scenes("train"))


def test_held_out_shares():
    assert len(held.HELD_PAIRS) == 4
    words = [word for what in held.HELD_PAIRS for word in shape_and_color(what)]
    assert len(set(words)) == 8
    assert 0.05 < len(held.HELD_COUNTS) / (2 * CELL_CLASSES) < 0.15
    assert len(set(held.HELD_PLACE)) == 9
    assert len(set(held.HELD_GROUND)) == 10
    # The split may never move, or a trained checkpoint's scores would mean nothing.
    assert sorted(CATALOG[what].name for what in held.HELD_PAIRS) == [
        "black heart",
        "purple cross",
        "white circle",
        "yellow triangle",
    ]
    puppy = class_of("puppy")
    assert (held.HELD_PLACE[puppy], held.HELD_GROUND[puppy]) == (3, "pink")


def test_catalog():
    assert len(THINGS) == 60
    assert CELL_CLASSES == 1 + 60 + len(SHAPES) * len(COLORS) == len(CATALOG)
    for part in ("name", "plural", "emoji", "fact"):
        assert len({getattr(thing, part) for thing in THINGS}) == 60
    for thing in THINGS:
        assert thing.fact.startswith(f"{thing.plural} ")
        assert thing.fact.endswith(".")
        assert len(thing.fact.split()) <= 9
    assert CATALOG[class_of("red cross")].plural == "red crosses"
    with pytest.raises(ValueError, match="no thing is named 'dragon'"):
        class_of("dragon")


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_scenes_keep_the_rules(split):
    for scene in scenes(split):
        cells = [item.cell for item in scene.items]
        assert cells == sorted(set(cells))
        assert 1 <= len(cells) <= 4
        assert all(is_visible(item.what, scene.ground, scene.night) for item in scene.items)
        labels = patch_labels(scene)
        assert np.flatnonzero(labels).tolist() == cells
        assert labels[cells].tolist() == [item.what for item in scene.items]


def test_wishes_are_kept_and_everything_occurs():
    assert {len(scene.items) for scene in scenes("train", 50, things=3)} == {3}
    for only, shape in (("shape", True), ("thing", False)):
        assert {
            is_shape(item.what) for scene in scenes("held-out", 50, only=only) for item in scene.items
        } == {shape}
    many = scenes("train", 12_000)
    seen = {item.what for scene in many for item in scene.items}
    assert seen == set(range(1, CELL_CLASSES)) - held.HELD_PAIRS
    assert {scene.ground for scene in many} == set(GROUNDS)
    repeated = sum(len({item.what for item in scene.items}) < len(scene.items) for scene in many)
    assert 0.25 < repeated / len(many) < 0.35


def test_no_shape_hides_in_its_ground():
    for what in range(FIRST_SHAPE, CELL_CLASSES):
        color = shape_and_color(what)[1]
        if color in GROUNDS:
            assert not is_visible(what, color, night=False)
            assert not is_visible(what, color, night=True)
    assert not is_visible(class_of("yellow star"), "orange", night=False)
    assert is_visible(class_of("yellow star"), "green", night=False)


@needs_font
def test_drawing_repeats_and_scales():
    for scene in scenes("train", 20):
        small, large = draw(scene), draw(scene, 384)
        assert small.shape == (96, 96, 3)
        assert small.dtype == np.uint8
        assert np.array_equal(small, draw(scene))
        shrunk = np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BOX), dtype=float)
        assert np.abs(shrunk - small).mean() < 6
    with pytest.raises(ValueError, match="multiple of 96, not 100"):
        draw(scene, 100)


@needs_font
def test_a_drawn_picture_is_its_own():
    scene = Scene("green", "plain", False, ())
    before = draw(scene)
    before[:] = 0
    assert draw(scene).min() > 0


@needs_font
@pytest.mark.parametrize("size", ["large", "small"])
def test_things_stay_in_their_cells(size):
    room = ROOM[size]
    empty = draw(Scene("gray", "plain", False, ()))
    for what in range(1, CELL_CLASSES):
        for angle, shift in ((-20, -room), (20, room)):
            item = Item(what, 4, size, angle > 0, angle, shift, shift)
            changed = (draw(Scene("gray", "plain", False, (item,))) != empty).any(axis=-1)
            rows, columns = np.nonzero(changed)
            assert rows.min() >= 32
            assert rows.max() < 64
            assert columns.min() >= 32
            assert columns.max() < 64


def test_examples_are_scenes_as_in_training():
    for scene in EXAMPLES.values():
        assert not held_out(scene)
        assert all(is_visible(item.what, scene.ground, scene.night) for item in scene.items)
        assert [item.cell for item in scene.items] == sorted({item.cell for item in scene.items})


@needs_font
def test_examples_are_written(tmp_path):
    paths = write(tmp_path / "pictures")
    assert [path.stem for path in paths] == list(EXAMPLES)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (384, 384)


def test_without_the_font_the_error_names_the_package(monkeypatch, tmp_path):
    from picturebook import drawing

    monkeypatch.setattr(drawing, "FONT", tmp_path / "none.ttf")
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        drawing._font.__wrapped__()
