"""Golden vectors: the tiny checkpoints of every family compute the stored numbers.

A red test says that the package or one of its dependencies computes something else than it did. The first one that is
red says where: words, pixels, frames, features, logits, answer. Nothing here asks another implementation.
After a change that is meant: `python demo-model/golden_vectors.py`.
"""

from functools import cache

import numpy as np
import pytest

from vectors.cases import (
    PROMPT_BY_CHECKPOINT,
    VECTORS_FOLDER,
    GoldenVectors,
    compute_vectors,
    load_tiny_checkpoint,
)
from vectors.checkpoint import CHECKPOINT_BY_NAME, hashed_uniform

# A share of a tensor's largest number. Other instruction sets, thread counts and float64 differ by less than 3e-6,
# which is rounding that norms of small numbers make larger.
TOLERANCE = 1e-5

each = pytest.mark.parametrize("name", PROMPT_BY_CHECKPOINT)


@cache
def read_vectors(name):
    return GoldenVectors.read(name)


@cache
def compute_vectors_again(name):
    return compute_vectors(load_tiny_checkpoint(name), name)


def tensors_of_kind(vectors, kind):
    """The tensors whose names begin with `kind`."""
    return {name: tensor for name, tensor in vectors.tensors.items() if name.split(".")[0] == kind}


def assert_near(name, kind):
    expected, found = (
        tensors_of_kind(read_vectors(name), kind),
        tensors_of_kind(compute_vectors_again(name), kind),
    )
    assert found.keys() == expected.keys()
    for part, tensor in expected.items():
        bound = TOLERANCE * np.abs(tensor).max()
        np.testing.assert_allclose(found[part], tensor, rtol=0, atol=bound, err_msg=f"{name} {part}")


def test_every_checkpoint_has_vectors():
    assert set(PROMPT_BY_CHECKPOINT) == set(CHECKPOINT_BY_NAME)
    assert {path.stem for path in VECTORS_FOLDER.iterdir()} == set(CHECKPOINT_BY_NAME)


def test_weights_do_not_depend_on_a_random_generator():
    """The first values for a name, as literals; all weights follow from them."""
    assert (hashed_uniform("lm_head.weight", 4) * 2**23).astype(int).tolist() == [
        7018436,
        85608,
        -2378932,
        5051334,
    ]


@each
@pytest.mark.parametrize("fact", ["ids", "sees", "places", "grids"])
def test_prompts_stay(name, fact):
    assert compute_vectors_again(name).facts[fact] == read_vectors(name).facts[fact]


@each
def test_pixels_stay(name):
    expected, found = (
        tensors_of_kind(read_vectors(name), "pixels"),
        tensors_of_kind(compute_vectors_again(name), "pixels"),
    )
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
    assert compute_vectors_again(name).facts["answer"] == read_vectors(name).facts["answer"]
    assert compute_vectors_again(name).facts["text"] == read_vectors(name).facts["text"]
    assert_near(name, "logprobs")
