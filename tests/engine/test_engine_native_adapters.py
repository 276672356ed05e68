"""The native decode step with adapters: every instruction set, against the models' own pass with the same terms."""

import pytest
import torch

from engine.random_sequences import UNUSUAL_CONFIGS, make_sequences, run_decode_steps, uncached_logits
from engine.test_engine_native import assert_equals_uncached, make_native_step
from idefics.config import QuantizationConfig
from idefics.engine.native.native_model import list_linears, unsupported_layer_reason
from idefics.native.library import available_instruction_sets
from idefics.nn.adapter_terms import AdapterGates, AdapterRows, GatedLayer, LowRankHook, LowRankTerm
from idefics.quant import quantizers_by_name
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, make_random_model, merge_config

pytestmark = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)
CONFIG_BY_KIND = {
    "cross_attention": IDEFICS1,
    "a gate for each number": merge_config(IDEFICS1, alpha_type="vector", qk_layer_norms=False),
    "window": IDEFICS2,
    "tied": merge_config(IDEFICS3, tie_word_embeddings=True),
    **UNUSUAL_CONFIGS,
}
RANKS = (1, 16, 21)  # of three adapters


@pytest.fixture(params=available_instruction_sets("decode step"), ids=lambda one: one.label)
def instruction_set(request):
    return request.param


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def add_random_adapters(model, share=0.7):
    """Gives most of the decoder's layers terms of each adapter; returns the object that says which rows use which."""
    rng, adapter_rows = torch.Generator().manual_seed(7), AdapterRows()
    for layer in list_linears(model.decoder_parts()):
        shapes = [(rank, layer.in_features, layer.out_features) for rank in RANKS]
        terms = [
            LowRankTerm(
                torch.randn(rank, inputs, generator=rng) * inputs**-0.5,
                torch.randn(rank, outputs, generator=rng) * rank**-0.5,
            )
            for rank, inputs, outputs in shapes
        ]
        kept = [term if torch.rand((), generator=rng) < share else None for term in terms]
        if any(kept):
            layer.register_forward_hook(LowRankHook(kept, adapter_rows))
    for layer in model.modules():
        if isinstance(layer, GatedLayer):
            gates = {
                name: [None, torch.randn(gate.shape, generator=rng), None]
                for name, gate in layer.named_parameters(recurse=False)
            }
            layer.adapter_gates = AdapterGates(gates, adapter_rows)
    return adapter_rows


def check(model, adapter_rows, rows, tolerance=2e-5):
    """Whether each row equals the model's own pass with its adapter, and differs from the pass without."""
    for row in rows:
        adapter_rows.groups = () if row.adapter < 0 else ((row.adapter, slice(None)),)
        assert_equals_uncached(model, [row], tolerance)
        adapter_rows.groups = ()
        if row.adapter >= 0:
            assert (torch.stack(row.logits) - uncached_logits(model, row)).abs().max() > 0.05


@pytest.mark.parametrize("kind", CONFIG_BY_KIND)
def test_equals_the_models_forward(kind, instruction_set, three_threads):
    model = make_random_model(CONFIG_BY_KIND[kind])
    adapter_rows = add_random_adapters(model)
    rows = make_sequences(model, [1, 2, 5, 17, 18, 9, 9, 3, 12, 4])
    for index, row in enumerate(rows):
        row.adapter = (-1, 0, 1, 2, 2)[index % 5]
    run_decode_steps(make_native_step(model, rows, instruction_set), rows)
    check(model, adapter_rows, rows)


def test_batches_of_more_rows_than_a_call_takes_and_of_one_adapter(instruction_set):
    """And steps in which no row has an adapter, or one that changes nothing."""
    model = make_random_model(IDEFICS3)
    adapter_rows = add_random_adapters(model)
    for layer in list_linears(model.decoder_parts()):
        for hook in layer._forward_hooks.values():
            hook.terms[0] = None
    rows = make_sequences(model, [3] * 18)
    step = make_native_step(model, rows, instruction_set)
    for start, adapter in ((0, 1), (9, -1)):
        for row in rows[start : start + 9]:
            row.adapter = adapter
    run_decode_steps(step, rows, max_batch_size=18)
    check(model, adapter_rows, rows)
    more = make_sequences(model, [3, 3])
    for row in more:
        row.adapter = 0
    run_decode_steps(step, more)
    assert_equals_uncached(model, more)


@pytest.mark.parametrize("kind", ["int8", "int4", "bfloat16"])
def test_terms_are_float32_where_weights_are_not(kind, instruction_set):
    """What an adapter adds to a layer of small integers is exact: the head's logits differ by the head's term."""
    model = make_random_model(IDEFICS3)
    if kind == "bfloat16":
        model.lm_head.weight.data = model.lm_head.weight.data.bfloat16()
    else:
        quantizers_by_name(model, QuantizationConfig(kind=kind, skip=()))["lm_head.weight"](
            model.lm_head.weight.data
        )
    assert not unsupported_layer_reason(model.lm_head)
    rng = torch.Generator().manual_seed(3)
    width, vocab_size = model.lm_head.in_features, model.lm_head.out_features
    term = LowRankTerm(torch.randn(5, width, generator=rng), torch.randn(5, vocab_size, generator=rng))
    model.lm_head.register_forward_hook(LowRankHook([term], AdapterRows()))
    rows = make_sequences(model, [6, 6])
    rows[1].ids, rows[1].adapter = rows[0].ids, 0
    run_decode_steps(make_native_step(model, rows, instruction_set), rows, max_batch_size=2)
    model.lm_head = torch.nn.Identity()
    expected = term(uncached_logits(model, rows[0]))
    torch.testing.assert_close(
        torch.stack(rows[1].logits) - torch.stack(rows[0].logits), expected, atol=2e-4, rtol=2e-4
    )
