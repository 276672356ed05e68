"""Covered pictures: what changes, what is shared, and what is encoded again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import idefics
from idefics.config import EngineConfig
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.scheduler import Scheduler
from idefics.explain.covering import CoverablePicture, gray_picture
from idefics.prompt import PreprocessedImage
from models import tiny


@pytest.fixture
def tiled():
    """A picture of 2 x 3 tiles of 8 x 8, and the whole."""
    rng = np.random.default_rng(0)
    frames = tuple(rng.normal(size=(3, 8, 8)).astype(np.float32) for _ in range(7))
    return PreprocessedImage(frames, 2, 3, "picture")


def cells_at(rows, columns, *marked):
    cells = np.zeros((rows, columns), bool)
    for row, column in marked:
        cells[row, column] = True
    return cells


def changed_frames(covered, image):
    return [i for i, (a, b) in enumerate(zip(covered.frames, image.frames, strict=True)) if a is not b]


def test_only_frames_that_show_a_covered_cell_change(tiled):
    picture = CoverablePicture(tiled)
    assert changed_frames(picture.cover(cells_at(4, 6, (0, 0))), tiled) == [0, 6]
    assert changed_frames(picture.cover(cells_at(4, 6, (1, 1), (1, 2))), tiled) == [0, 1, 6]
    assert changed_frames(picture.cover(cells_at(4, 6, (1, 3), (2, 3))), tiled) == [1, 4, 6]
    assert changed_frames(picture.cover(cells_at(4, 6)), tiled) == []


def test_only_covered_pixels_change_and_they_become_the_blurred_picture(tiled):
    covered = CoverablePicture(tiled).cover(cells_at(4, 6, (0, 0)))
    everything = CoverablePicture(tiled).cover(np.ones((4, 6), bool))
    for index, rows, columns in ((0, slice(0, 4), slice(0, 4)), (6, slice(0, 2), slice(0, 1))):
        expected = np.array(tiled.frames[index])
        expected[:, rows, columns] = everything.frames[index][:, rows, columns]
        assert np.array_equal(covered.frames[index], expected)
    assert everything.frames[6].std() < 0.3 * tiled.frames[6].std()
    assert everything.frames[6].mean() == pytest.approx(tiled.frames[6].mean(), abs=0.05)


def test_tiles_of_the_blurred_picture_are_parts_of_the_whole():
    """A picture that is a slope is blurred to a slope, and each tile to its part of it."""
    slope = np.linspace(0, 1, 16, dtype=np.float32)[None, None].repeat(3, 0).repeat(16, 1)
    tiles = tuple(np.zeros((3, 16, 16), np.float32) for _ in range(2))
    image = PreprocessedImage((*tiles, slope), 1, 2, "slope")
    left, right, whole = CoverablePicture(image).cover(np.ones((2, 2), bool)).frames
    assert left.max() <= right.min() + 0.02
    assert left[0, 0, 0] == pytest.approx(whole[0, 0, 0], abs=1e-5)
    assert right[0, 0, -1] == pytest.approx(whole[0, 0, -1], abs=1e-5)


def test_equal_covers_have_equal_hashes_and_others_differ(tiled):
    picture = CoverablePicture(tiled)
    masks = [cells_at(4, 6, (0, 0)), cells_at(4, 6, (0, 1)), cells_at(6, 4, (0, 0))]
    hashes = [picture.cover(mask).content_hash for mask in masks]
    assert len({*hashes, tiled.content_hash}) == 4
    assert hashes == [CoverablePicture(tiled).cover(mask).content_hash for mask in masks]


def test_the_picture_that_stands_for_none_is_the_plain_gray_of_calibration():
    with idefics.load("demo") as vlm:
        gray = vlm.prompt([idefics.Picture(np.full((50, 70, 3), 127, np.uint8))]).pictures[0]
        other = vlm.prompt([idefics.Picture(np.zeros((50, 70, 3), np.uint8))]).pictures[0]
        made = gray_picture(other, vlm.processor.image_config)
    assert np.allclose(made.frames[0], gray.frames[0], atol=1e-6)
    assert made.content_hash == gray_picture(gray, vlm.processor.image_config).content_hash


@pytest.fixture(scope="module")
def tiny_tiled(tmp_path_factory):
    """A random Idefics 3 that splits pictures into tiles."""
    folder = tmp_path_factory.mktemp("tiled")
    tiny.write_complete_checkpoint(folder, tiny.IDEFICS3)
    with idefics.load(folder, feature_cache=False) as model:
        yield model


def count_encoded_frames(vlm, monkeypatch):
    counts, encode = [], vlm.engine.model.encode

    def counted(frames):
        counts.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(vlm.engine.model, "encode", counted)
    return counts


def test_unchanged_tiles_are_not_encoded_again(tiny_tiled, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    prompt = tiny_tiled.prompt([idefics.Picture(pixels), " What?"])
    (image,) = prompt.pictures
    assert len(image.frames) == 5
    continuations = [[5, 6, 7]]
    tiny_tiled.engine.clear_caches()
    counts = count_encoded_frames(tiny_tiled, monkeypatch)
    tiny_tiled.engine.score(prompt, continuations)
    assert sum(counts) == 5
    covered = CoverablePicture(image).cover(cells_at(4, 4, (0, 0)))
    reused = tiny_tiled.engine.score(prompt.with_last_pictures([covered]), continuations)
    assert sum(counts) == 5 + 2  # the tile and the whole picture
    tiny_tiled.engine.clear_caches()  # without the picture it was made of, all frames are encoded
    alone = tiny_tiled.engine.score(prompt.with_last_pictures([covered]), continuations)
    assert sum(counts) == 7 + 5
    assert np.allclose(reused, alone, atol=1e-5)


def test_an_explanation_of_a_photo_of_17_frames_encodes_a_fifth_of_them(tmp_path, monkeypatch):
    tiny.write_complete_checkpoint(
        tmp_path, tiny.merge_config(tiny.IDEFICS3, text_config={"max_position_embeddings": 4096})
    )
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"longest_edge": 4 * 32}}))
    pixels = np.random.default_rng(1).integers(0, 256, (150, 150, 3), np.uint8)
    with idefics.load(tmp_path, feature_cache=False) as vlm:
        counts = count_encoded_frames(vlm, monkeypatch)
        explanation = vlm.explain(pixels, "What is it?", "A dog.")
    assert explanation.num_passes == 67
    assert 2 * 17 + 65 < sum(counts) < 0.22 * 67 * 17


class FeatureFiles:
    """Notes the keys that are read and written."""

    def __init__(self):
        self.read, self.written = [], []

    def load(self, key):
        self.read.append(key)

    def store(self, key, tensors):
        self.written.append(key)


def test_covered_pictures_stay_out_of_the_feature_files(tiny_tiled):
    frames = tuple(np.full((3, 32, 32), index, np.float32) for index in range(2))
    base = PreprocessedImage(frames, 1, 1, "base")
    files = FeatureFiles()
    cache = EncoderCache(tiny_tiled.engine.model, EngineConfig(), files)
    for image in (base, CoverablePicture(base).cover(np.ones((1, 1), bool))):
        cache.encode([(image, cache.count_missing_frames(image))])
        assert cache.features(image).shape[0] == 2 * cache.features(base).shape[0] / 2
    assert set(files.read) == set(files.written) == {"base"}


def test_the_picture_that_a_covered_one_was_made_of_stays_while_that_is_needed(tiled):
    covered = CoverablePicture(tiled).cover(cells_at(4, 6, (0, 0)))
    state = SimpleNamespace(
        request=SimpleNamespace(prompt=SimpleNamespace(pictures=[covered])),
        image_spans=[SimpleNamespace(image_index=0, last_position=5)],
        sequences=[SimpleNamespace(num_computed_tokens=0)],
    )
    assert Scheduler.image_keys_in_use(SimpleNamespace(running=[state])) == {"picture", covered.content_hash}
    state.sequences[0].num_computed_tokens = 6
    assert Scheduler.image_keys_in_use(SimpleNamespace(running=[state])) == set()
