"""Scenes of the picture book, and their drawing."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from picturebook import (
    CATALOG,
    NUM_CLASSES,
    THINGS,
    Scene,
    SceneItem,
    cell_class_ids,
    class_id_of,
    draw_scene,
    is_held_out_scene,
    sample_scene,
)
from picturebook import split as held
from picturebook.drawing import FONT_PATH
from picturebook.examples import EXAMPLE_SCENES, write_pictures
from picturebook.scene import MAX_OFFSET_BY_SIZE, is_visible
from picturebook.things import (
    COLOR_RGB,
    FIRST_SHAPE_ID,
    GROUND_RGB,
    SHAPES,
    is_colored_shape,
    shape_and_color,
)

needs_font = pytest.mark.skipif(not FONT_PATH.is_file(), reason="needs the package fonts-noto-color-emoji")


def sample_scenes(split, number=1500, seed=1, **sample_arguments):
    rng = random.Random(seed)
    return [sample_scene(rng, split, **sample_arguments) for _ in range(number)]


def held_out_combinations(scene):
    """The held-out combinations of a scene, written out by hand."""
    for item in scene.items:
        yield ("place", item.class_id, item.cell)
        yield ("ground", item.class_id, scene.ground)
        if is_colored_shape(item.class_id):
            yield ("pair", item.class_id)
    for what, count in Counter(item.class_id for item in scene.items).items():
        if count > 1:
            yield ("count", what, count)


def test_training_has_no_held_out_combination_and_evaluation_always_has_one():
    trained = {
        combination
        for scene in sample_scenes("train", 20_000)
        for combination in held_out_combinations(scene)
    }
    for scene in sample_scenes("held-out"):
        assert is_held_out_scene(scene)
        assert any(combination not in trained for combination in held_out_combinations(scene))
    assert not any(is_held_out_scene(scene) for scene in sample_scenes("train"))


def test_held_out_shares():
    assert len(held.HELD_OUT_SHAPES) == 4
    words = [word for what in held.HELD_OUT_SHAPES for word in shape_and_color(what)]
    assert len(set(words)) == 8
    assert 0.05 < len(held.HELD_OUT_COUNTS) / (2 * NUM_CLASSES) < 0.15
    assert len(set(held.HELD_OUT_CELL_BY_CLASS)) == 9
    assert len(set(held.HELD_OUT_GROUND_BY_CLASS)) == 10
    # The split may never move, or a trained checkpoint's scores would mean nothing.
    assert sorted(CATALOG[what].name for what in held.HELD_OUT_SHAPES) == [
        "black heart",
        "purple cross",
        "white circle",
        "yellow triangle",
    ]
    puppy = class_id_of("puppy")
    assert (held.HELD_OUT_CELL_BY_CLASS[puppy], held.HELD_OUT_GROUND_BY_CLASS[puppy]) == (3, "pink")


def test_catalog():
    assert len(THINGS) == 60
    assert NUM_CLASSES == 1 + 60 + len(SHAPES) * len(COLOR_RGB) == len(CATALOG)
    for part in ("name", "plural", "emoji", "fact"):
        assert len({getattr(thing, part) for thing in THINGS}) == 60
    for thing in THINGS:
        assert thing.fact.startswith(f"{thing.plural} ")
        assert thing.fact.endswith(".")
        assert len(thing.fact.split()) <= 9
    assert CATALOG[class_id_of("red cross")].plural == "red crosses"
    with pytest.raises(ValueError, match="no thing is named 'dragon'"):
        class_id_of("dragon")


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_scenes_keep_the_rules(split):
    for scene in sample_scenes(split):
        cells = [item.cell for item in scene.items]
        assert cells == sorted(set(cells))
        assert 1 <= len(cells) <= 4
        assert all(is_visible(item.class_id, scene.ground, scene.is_night) for item in scene.items)
        labels = cell_class_ids(scene)
        assert np.flatnonzero(labels).tolist() == cells
        assert labels[cells].tolist() == [item.class_id for item in scene.items]


def test_arguments_are_honored_and_everything_occurs():
    assert {len(scene.items) for scene in sample_scenes("train", 50, num_things=3)} == {3}
    for only, shape in (("shape", True), ("thing", False)):
        assert {
            is_colored_shape(item.class_id)
            for scene in sample_scenes("held-out", 50, thing_filter=only)
            for item in scene.items
        } == {shape}
    many = sample_scenes("train", 12_000)
    seen = {item.class_id for scene in many for item in scene.items}
    assert seen == set(range(1, NUM_CLASSES)) - held.HELD_OUT_SHAPES
    assert {scene.ground for scene in many} == set(GROUND_RGB)
    repeated = sum(len({item.class_id for item in scene.items}) < len(scene.items) for scene in many)
    assert 0.25 < repeated / len(many) < 0.35


def test_shapes_contrast_with_their_ground():
    for what in range(FIRST_SHAPE_ID, NUM_CLASSES):
        color = shape_and_color(what)[1]
        if color in GROUND_RGB:
            assert not is_visible(what, color, is_night=False)
            assert not is_visible(what, color, is_night=True)
    assert not is_visible(class_id_of("yellow star"), "orange", is_night=False)
    assert is_visible(class_id_of("yellow star"), "green", is_night=False)


@needs_font
def test_drawing_repeats_and_scales():
    for scene in sample_scenes("train", 20):
        small, large = draw_scene(scene), draw_scene(scene, 384)
        assert small.shape == (96, 96, 3)
        assert small.dtype == np.uint8
        assert np.array_equal(small, draw_scene(scene))
        shrunk = np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BOX), dtype=float)
        assert np.abs(shrunk - small).mean() < 6
    with pytest.raises(ValueError, match="multiple of 96, not 100"):
        draw_scene(scene, 100)


@needs_font
def test_a_drawn_picture_is_a_copy():
    scene = Scene("green", "plain", False, ())
    before = draw_scene(scene)
    before[:] = 0
    assert draw_scene(scene).min() > 0


@needs_font
@pytest.mark.parametrize("size", ["large", "small"])
def test_things_stay_in_their_cells(size):
    room = MAX_OFFSET_BY_SIZE[size]
    empty = draw_scene(Scene("gray", "plain", False, ()))
    for what in range(1, NUM_CLASSES):
        for angle, shift in ((-20, -room), (20, room)):
            item = SceneItem(what, 4, size, angle > 0, angle, shift, shift)
            changed = (draw_scene(Scene("gray", "plain", False, (item,))) != empty).any(axis=-1)
            rows, columns = np.nonzero(changed)
            assert rows.min() >= 32
            assert rows.max() < 64
            assert columns.min() >= 32
            assert columns.max() < 64


def test_examples_are_scenes_as_in_training():
    for scene in EXAMPLE_SCENES.values():
        assert not is_held_out_scene(scene)
        assert all(is_visible(item.class_id, scene.ground, scene.is_night) for item in scene.items)
        assert [item.cell for item in scene.items] == sorted({item.cell for item in scene.items})


@needs_font
def test_examples_are_written(tmp_path):
    paths = write_pictures(tmp_path / "pictures")
    assert [path.stem for path in paths] == list(EXAMPLE_SCENES)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (384, 384)


def test_without_the_font_the_error_names_the_package(monkeypatch, tmp_path):
    from picturebook import drawing

    monkeypatch.setattr(drawing, "FONT_PATH", tmp_path / "none.ttf")
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        drawing._load_font.__wrapped__()
