"""Memory of frames is used again, and never while something still refers to it."""

import numpy as np
import pytest
import torch

from idefics.processing import frame_memory
from idefics.processing.frame_memory import empty_float32, empty_pixels


@pytest.fixture(autouse=True)
def no_spare_memory():
    for spare in (frame_memory._spare, frame_memory._spare_pixels):
        spare.clear()
    yield
    for spare in (frame_memory._spare, frame_memory._spare_pixels):
        spare.clear()


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nothing_refers_to_is_used_again():
    first = address(empty_float32(1000))
    second = empty_float32(600)
    assert address(second) == first
    assert second.dtype == np.float32 and second.shape == (600,) and second.flags.writeable


@pytest.mark.parametrize(
    "refer", [lambda array: array[10:20].reshape(2, 5).T, torch.from_numpy], ids=["view", "tensor"]
)
def test_memory_in_use_is_not_given_away(refer):
    array = empty_float32(1000)
    array[:] = 7
    kept = refer(array)
    del array
    empty_float32(1000)[:] = 0
    assert (kept == 7).all()
    del kept
    assert len(frame_memory._spare) == 1


def test_memory_of_another_size_is_not_used():
    for before, after in ((1000, 1001), (1000, 499)):
        array = empty_float32(before)
        del array
        assert frame_memory._spare[0].size == before
        array = empty_float32(after)
        assert not frame_memory._spare and array.size == after


def test_much_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(frame_memory, "MAX_SPARE_BYTES", 4000)
    empty_float32(1001)
    assert not frame_memory._spare
    empty_float32(1000)
    assert len(frame_memory._spare) == 1


def test_memory_of_large_pictures_is_used_again():
    first, second = empty_pixels(1500, 1600), empty_pixels(1400, 1600)
    addresses = {address(first), address(second)}
    assert first.shape == (1500, 1600, 3) and first.dtype == np.uint8 and len(addresses) == 2
    del first, second
    again = empty_pixels(1300, 1600)
    assert address(again) in addresses and again.shape == (1300, 1600, 3)
    assert len(frame_memory._spare_pixels) == 1


def test_memory_of_tiles_and_of_huge_pictures_is_not_kept():
    for height, width in ((980, 980), (4096, 4096)):
        empty_pixels(height, width)
        assert not frame_memory._spare_pixels
