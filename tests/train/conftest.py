"""What tests of training data share."""

from functools import cache

import pytest

from train.training_data import tiny_checkpoint, write_pictures


@pytest.fixture(scope="session")
def get_checkpoint(tmp_path_factory):
    """Tiny checkpoints by the short names of released ones, made once."""
    return cache(lambda name: tiny_checkpoint(tmp_path_factory.mktemp("tiny"), name))


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures."""
    return write_pictures(tmp_path)
