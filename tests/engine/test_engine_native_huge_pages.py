"""Weights are moved into huge pages for the native step, without other effects."""

import os
import sys

import pytest
import torch

from engine.random_sequences import UnwrittenPages, make_decode_inputs, make_sequences
from idefics.engine.native import huge_pages
from idefics.engine.native.decode import NativeDecode
from idefics.engine.native.native_model import list_linears
from idefics.native.library import available_instruction_sets
from models.tiny import IDEFICS1, IDEFICS3, make_random_model, merge_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this system has no such pages")
TIED_CONFIG = merge_config(IDEFICS3, tie_word_embeddings=True)


def weight_addresses(model):
    return {
        one.untyped_storage().data_ptr()
        for layer in list_linears(model.decoder_parts())
        for one in layer.parameters()
    }


def pack_decoder(model):
    huge_pages.pack_into_huge_pages(
        weight for layer in list_linears(model.decoder_parts()) for weight in layer.parameters(recurse=False)
    )


@pytest.mark.parametrize("raw", [IDEFICS1, IDEFICS3, TIED_CONFIG], ids=["cross_attention", "grouped", "tied"])
def test_weights_are_contiguous_and_unchanged(raw):
    model = make_random_model(raw)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    pack_decoder(model)
    assert len(weight_addresses(model)) == 1
    assert all(weight is parameters[name] for name, weight in model.named_parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert weight.data_ptr() % weight.element_size() == 0


def test_too_many_weights_are_not_moved(monkeypatch):
    model = make_random_model(IDEFICS3)
    before = weight_addresses(model)
    monkeypatch.setattr(huge_pages, "MAX_PACKED_BYTES", 1000)
    pack_decoder(model)
    assert weight_addresses(model) == before


@pytest.mark.skipif(not available_instruction_sets("decode step"), reason="the native step was not compiled")
@torch.inference_mode()
def test_an_older_step_stays_usable(monkeypatch):
    """Its weights are not freed while it lives, though a newer step has moved the model's."""
    model = make_random_model(TIED_CONFIG)
    rows = make_decode_inputs(make_sequences(model, [1]))
    older = NativeDecode(model.decoder_parts(), UnwrittenPages.allocate(model.layout, 2))
    wanted = older(rows)
    addresses = weight_addresses(model)
    younger = NativeDecode(model.decoder_parts(), UnwrittenPages.allocate(model.layout, 2))
    assert torch.equal(younger(rows), wanted)
    assert not weight_addresses(model) & addresses  # the old memory is still in use
    assert torch.equal(older(rows), wanted)


@pytest.mark.skipif(not available_instruction_sets("decode step"), reason="the native step was not compiled")
@torch.inference_mode()
def test_weights_are_moved_by_the_first_step_of_the_process_that_loaded_them():
    model = make_random_model(TIED_CONFIG)
    rows = make_decode_inputs(make_sequences(model, [1]))
    steps = [NativeDecode(model.decoder_parts(), UnwrittenPages.allocate(model.layout, 2)) for _ in range(2)]
    before = weight_addresses(model)
    steps[0]._loading_process_id = os.getpid() + 1  # as in a process that was forked before the first step
    steps[0](rows)
    assert weight_addresses(model) == before
    steps[1](rows)
    assert len(weight_addresses(model)) == 1 < len(before)
