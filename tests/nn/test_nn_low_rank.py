"""The terms of adapters: added to the outputs of a layer for the rows that use them, and to no others."""

import pytest
import torch
from torch import nn

from idefics.nn.adapter_terms import (
    AdapterGates,
    AdapterRows,
    GatedLayer,
    LowRankHook,
    LowRankTerm,
    gate_to_factor,
    has_other_hooks,
    low_rank_terms,
)
from idefics.nn.native_kernels import has_hooks


@pytest.fixture
def layer():
    torch.manual_seed(1)
    return nn.Linear(6, 5)


def add_terms(layer, num_outputs=5):
    """Two adapters, of ranks 2 and 3, and one that leaves the layer as it is."""
    rows = AdapterRows()
    terms = [LowRankTerm(torch.randn(rank, 6), torch.randn(rank, num_outputs)) for rank in (2, 3)]
    layer.register_forward_hook(LowRankHook([*terms, None], rows))
    return terms, rows


def dense(term):
    return (term.a.T @ term.b).T


@torch.no_grad()
def test_rows_get_the_term_of_their_adapter(layer):
    x = torch.randn(7, 6)
    before = layer(x)
    terms, rows = add_terms(layer)
    torch.testing.assert_close(layer(x), before)
    rows.groups = ((1, slice(1, 3)), (0, torch.tensor([0, 5])), (2, slice(3, 5)))
    added = layer(x) - before
    for indices, weight in (([1, 2], dense(terms[1])), ([0, 5], dense(terms[0]))):
        torch.testing.assert_close(added[indices], x[indices] @ weight.T)
    assert not added[[3, 4, 6]].any()


@torch.no_grad()
def test_all_rows_of_any_shape_and_outputs_that_others_add(layer):
    x = torch.randn(2, 3, 6)
    before = layer(x)
    terms, rows = add_terms(layer, num_outputs=4)
    rows.groups = ((0, slice(None)),)
    added = layer(x) - before
    torch.testing.assert_close(added[..., :4], x @ dense(terms[0]).T)
    assert not added[..., 4:].any()


def test_c_may_compute_a_layer_as_long_as_no_row_has_an_adapter(layer):
    terms, rows = add_terms(layer)
    assert not has_hooks(layer)
    rows.groups = ((0, slice(None)),)
    assert has_hooks(layer)
    assert not has_other_hooks(layer)
    assert low_rank_terms(layer) == [*terms, None]
    assert low_rank_terms(nn.Linear(2, 2)) == ()
    rows.groups = ()
    layer.register_forward_pre_hook(lambda *_: None)
    assert has_hooks(layer)
    assert has_other_hooks(layer)


@pytest.mark.parametrize("size", [1, 4])
def test_gates_of_adapters_are_those_of_their_rows(size):
    gate, other = torch.randn(1, 1, size), torch.randn(size)
    rows, x = AdapterRows(), torch.zeros(5, 4)
    layer = GatedLayer()
    layer.adapter_gates = AdapterGates({"alpha": [None, other]}, rows)
    torch.testing.assert_close(layer.gate_factor("alpha", gate, x), gate_to_factor(gate, x))
    rows.groups = ((1, torch.tensor([0, 3])), (0, slice(1, 2)))
    found = layer.gate_factor("alpha", gate, x)
    torch.testing.assert_close(found[[0, 3]], other.tanh().expand(2, -1))
    torch.testing.assert_close(found[[1, 2, 4]], gate.flatten().tanh().expand(3, -1))
