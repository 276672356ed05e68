"""Weights are moved into large pages for the native step, and nobody notices."""

import sys

import pytest
import torch

from engine.native_rows import Pages, rows_of, sequences
from idefics.engine.native import NativeDecode, instruction_sets, together
from idefics.engine.native.description import linears
from models.tiny import IDEFICS1, IDEFICS3, changed, model_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this system has no such pages")
TIED = changed(IDEFICS3, tie_word_embeddings=True)


def memories(model):
    return {
        one.untyped_storage().data_ptr() for layer in linears(model.stack()) for one in layer.parameters()
    }


@pytest.mark.parametrize("raw", [IDEFICS1, IDEFICS3, TIED], ids=["beside", "grouped", "tied"])
def test_all_in_one_piece_as_they_were(raw):
    model = model_of(raw)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    together.bring_together(linears(model.stack()))
    assert len(memories(model)) == 1
    assert all(weight is parameters[name] for name, weight in model.named_parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert weight.data_ptr() % weight.element_size() == 0


def test_very_many_stay_where_they_are(monkeypatch):
    model = model_of(IDEFICS3)
    before = memories(model)
    monkeypatch.setattr(together, "MOST", 1000)
    together.bring_together(linears(model.stack()))
    assert memories(model) == before


@pytest.mark.skipif(not instruction_sets(), reason="the native step was not compiled")
@torch.inference_mode()
def test_an_older_step_reads_on(monkeypatch):
    """Its weights are not given back while it lives, though a younger one has moved the model's."""
    model = model_of(TIED)
    rows = rows_of(sequences(model, [1]))
    older = NativeDecode(model.stack(), Pages.of(model.layout, 2))
    addresses = memories(model)
    wanted = older(rows)
    younger = NativeDecode(model.stack(), Pages.of(model.layout, 2))
    assert not memories(model) & addresses  # the old memory is still taken
    assert torch.equal(older(rows), wanted)
    assert torch.equal(younger(rows), wanted)
