"""Tiny checkpoints of every family make of their prompts what was written down, number by number.

A red test says that the package or one of its dependencies computes something else than it did. The first one that is
red says where: words, pixels, frames, features, logits, answer. Nothing here asks another implementation.
After a change that is meant: `python scripts/golden_vectors.py`.
"""

from functools import cache

import numpy as np
import pytest

from vectors.cases import FOLDER, PROMPTS, Vectors, load, measure
from vectors.checkpoint import CHECKPOINTS, uniform

# A share of a tensor's largest number. Other instruction sets, thread counts and float64 differ by less than 3e-6,
# which is rounding that norms of small numbers make larger.
TOLERANCE = 1e-5

each = pytest.mark.parametrize("name", PROMPTS)


@cache
def written(name):
    return Vectors.read(name)


@cache
def measured(name):
    return measure(load(name), name)


def of(vectors, kind):
    """Tensors of one kind, by name."""
    return {name: tensor for name, tensor in vectors.tensors.items() if name.split(".")[0] == kind}


def assert_near(name, kind):
    expected, found = of(written(name), kind), of(measured(name), kind)
    assert found.keys() == expected.keys()
    for part, tensor in expected.items():
        bound = TOLERANCE * np.abs(tensor).max()
        np.testing.assert_allclose(found[part], tensor, rtol=0, atol=bound, err_msg=f"{name} {part}")


def test_every_checkpoint_is_written_down():
    assert set(PROMPTS) == set(CHECKPOINTS)
    assert {path.stem for path in FOLDER.iterdir()} == set(CHECKPOINTS)


def test_weights_are_arithmetic():
    """The first numbers of a name, written out: were they others, so would be all that follows."""
    assert (uniform("lm_head.weight", 4) * 2**23).astype(int).tolist() == [7018436, 85608, -2378932, 5051334]


@each
@pytest.mark.parametrize("fact", ["ids", "sees", "places", "grids"])
def test_prompts_stay(name, fact):
    assert measured(name).facts[fact] == written(name).facts[fact]


@each
def test_pixels_stay(name):
    expected, found = of(written(name), "pixels"), of(measured(name), "pixels")
    assert found.keys() == expected.keys()
    for part, tensor in expected.items():
        np.testing.assert_array_equal(found[part], tensor, err_msg=f"{name} {part}")


@each
def test_frames_stay(name):
    assert_near(name, "frames")


@each
def test_features_stay(name):
    assert_near(name, "features")


@each
def test_logits_stay(name):
    assert_near(name, "logits")


@each
def test_answers_stay(name):
    assert measured(name).facts["answer"] == written(name).facts["answer"]
    assert measured(name).facts["text"] == written(name).facts["text"]
    assert_near(name, "logprobs")
