"""What tests of training data share."""

from functools import cache

import pytest
import torch

from models import tiny
from train.training_data import tiny_checkpoint, write_pictures


@pytest.fixture(scope="session")
def get_checkpoint(tmp_path_factory):
    """Tiny checkpoints by the short names of released ones, made once."""
    return cache(lambda name: tiny_checkpoint(tmp_path_factory.mktemp("tiny"), name))


@pytest.fixture(scope="session", params=["idefics", "idefics3"])
def folder(request, tmp_path_factory):
    """A tiny checkpoint of a cross-attention model, and of an inline-image model."""
    raw = {"idefics": tiny.IDEFICS1, "idefics3": tiny.IDEFICS3}[request.param]
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / request.param, raw)


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures."""
    return write_pictures(tmp_path)


@pytest.fixture
def float64(monkeypatch):
    """What a model of float64 numbers computes in float32 is float64 too: norms, logits and losses.

    The order of a sum then changes 1e-15 of it, on any processor; in float32 as much as tests are to find.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
