"""What is easy to get wrong in Idefics 1, one trap a test."""

import pytest
import torch

from idefics.nn.attention import DenseAttn
from models import tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def cross_attention_gates(model):
    return model.model.gated_cross_attn_layers


def test_dense_half_runs_for_tokens_without_a_picture():
    """And the attention half adds nothing to them, to the bit."""
    for kind in ("float", "vector"):
        block = cross_attention_gates(tiny.make_random_model({**tiny.IDEFICS1, "alpha_type": kind}))[0]
        x = torch.randn(3, 48)
        dense = block.mlp(block.post_attention_layernorm(x))
        assert torch.equal(block(0, x, DenseAttn(1)), x + block.alpha_dense.flatten().tanh() * dense)
        assert dense.abs().max() > 0.1


def test_gates_are_tanh_of_alpha():
    model = tiny.make_random_model(tiny.IDEFICS1)
    prompts = [tiny.make_random_prompt(model, "t1ttt")]
    open_ = tiny.compute_logits(model, prompts)[0]
    with torch.no_grad():
        for block in cross_attention_gates(model):
            block.alpha_cross_attn.zero_()
            block.alpha_dense.zero_()
    closed = tiny.compute_logits(model, prompts)[0]
    assert (open_ - closed).abs().max() > 0.1
    blind = [tiny.make_random_prompt(model, "t1ttt")]
    object.__setattr__(blind[0], "sees", (-1,) * len(blind[0]))
    torch.testing.assert_close(tiny.compute_logits(model, blind)[0], closed, **CLOSE)


def test_cross_attention_is_not_rotated():
    """Positions moved by a hundred change nothing: only distances between tokens count, and a picture has none."""
    model = tiny.make_random_model(tiny.IDEFICS1)
    x, sees = model.embed(torch.tensor([4, 5, 6, 7])), torch.tensor([-1, 0, 0, 1])
    memory = model.compute_cross_kv(model.encode(torch.randn(2, 3, 32, 32)))
    near = model(x, torch.arange(4), DenseAttn(1, memory, sees))
    far = model(x, torch.arange(100, 104), DenseAttn(1, memory, sees))
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


def test_keys_of_a_picture_have_no_order():
    """Rows of features in another order are the same picture: nothing numbers them."""
    model = tiny.make_random_model(tiny.IDEFICS1)
    features, q = torch.randn(1, 5, 32), torch.randn(3, 48)
    sees = torch.zeros(3, dtype=torch.long)
    for index, block in enumerate(cross_attention_gates(model)):
        one, other = (
            block.cross_attn(index, q, DenseAttn(1, model.compute_cross_kv(rows), sees))
            for rows in (features, features[:, [3, 1, 4, 0, 2]])
        )
        torch.testing.assert_close(one, other, **CLOSE)


def test_tower_ends_before_post_layernorm_and_keeps_its_class_vector():
    model = tiny.make_random_model({**tiny.IDEFICS1, "use_resampler": False})
    tower, frames = model.model.vision_model, torch.randn(2, 3, 32, 32)
    features = model.encode(frames)
    assert features.shape == (2, 1 + 16, 32)
    assert torch.equal(features, tower.encoder(tower.pre_layrnorm(tower.embeddings(frames))))
    with torch.no_grad():
        tower.post_layernorm.weight.fill_(7)
        tower.post_layernorm.bias.fill_(7)
    assert torch.equal(features, model.encode(frames))


def test_tower_uses_the_exact_gelu():
    """Unless its file says otherwise; the other gelu is another model."""
    silent = tiny.merge_config(tiny.IDEFICS1, vision_config={"hidden_act": None})
    model = tiny.make_random_model(silent)
    other = tiny.make_random_model(
        tiny.merge_config(silent, vision_config={"hidden_act": "gelu_pytorch_tanh"})
    )
    other.load_state_dict(model.state_dict())
    mlp, tanh = (m.model.vision_model.encoder.layers[0].mlp for m in (model, other))
    x = torch.randn(9, 32)
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x))), atol=0, rtol=0)
    assert (mlp(x) - tanh(x)).abs().max() > 1e-4


def test_resampler_has_torchs_epsilon_whatever_the_configs_say():
    raw = tiny.merge_config(tiny.IDEFICS1, rms_norm_eps=1e-3, vision_config={"layer_norm_eps": 1e-2})
    norms = [
        m
        for m in tiny.make_random_model(raw).model.perceiver_resampler.modules()
        if isinstance(m, torch.nn.LayerNorm)
    ]
    assert len(norms) == 2 * 5 + 1
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize("additional", [0, 2, 3])
def test_additional_vocabulary_has_tables_of_its_own(additional):
    model = tiny.make_random_model({**tiny.IDEFICS1, "additional_vocab_size": additional})
    table, head = model.model.embed_tokens, model.lm_head
    ids = torch.tensor([3, 0, 49, *range(50, 50 + additional), 7])
    rows, logits = table.weight, head.weight
    if additional:
        rows = torch.cat((rows, table.additional_embedding.weight))
        logits = torch.cat((logits, head.additional_fc.weight))
    assert model.layout.vocab_size == 50 + additional
    assert torch.equal(model.embed(ids), rows[ids])
    h = torch.randn(4, 48)
    torch.testing.assert_close(model.logits(h), h @ logits.T, **CLOSE)


def test_ids_beyond_both_tables_are_refused():
    with pytest.raises(IndexError):
        tiny.make_random_model(tiny.IDEFICS1).embed(torch.tensor([52]))


def test_only_the_latest_picture_is_seen():
    """Tokens that see the second picture are the same whatever the first one is."""
    model = tiny.make_random_model(tiny.IDEFICS1)
    x, sees = model.embed(torch.tensor([4, 5, 6])), torch.ones(3, dtype=torch.long)
    first, other, second = torch.randn(3, 1, 3, 32, 32)
    one, two = (
        model(x, torch.arange(3), DenseAttn(1, model.compute_cross_kv(model.encode(torch.cat(frames))), sees))
        for frames in ((first, second), (other, second))
    )
    assert torch.equal(one, two)
    swapped = DenseAttn(1, model.compute_cross_kv(model.encode(torch.cat((second, first)))), sees)
    assert (model(x, torch.arange(3), swapped) - one).abs().max() > 1e-2


def test_what_a_token_sees_is_what_transformers_says():
    """The rule by which prompts of these tests are made, against the released code's own."""
    pytest.importorskip("transformers")
    from transformers.models.idefics.processing_idefics import image_attention_mask_for_packed_input_ids

    model = tiny.make_random_model(tiny.IDEFICS1)

    class Tokenizer:
        eos_token_id = tiny.END_OF_DOCUMENT

        @staticmethod
        def convert_tokens_to_ids(token):
            return model.layout.vocab_size - 1

    for scene in ("ttt", "1tt", "t1t11tt", "t1etttt", "1et1tee1tt", "e1t"):
        prompt = tiny.make_random_prompt(model, scene)
        mask, _ = image_attention_mask_for_packed_input_ids(torch.tensor([prompt.ids]), Tokenizer, "pt")
        assert mask[0].tolist() == list(prompt.image_index)


def test_a_block_stands_before_every_interval_th_layer():
    """In this order: the gated block, then the layer of the same index."""
    model = tiny.make_random_model({**tiny.IDEFICS1, "cross_layer_interval": 2, "num_hidden_layers": 6})
    order = []
    for name, part in model.named_modules():
        if part in (*model.model.layers, *cross_attention_gates(model)):
            part.register_forward_hook(lambda *_, name=name: order.append(name.removeprefix("model.")))
    tiny.compute_logits(model, [tiny.make_random_prompt(model, "1t")])
    layers, blocks = (f"layers.{i}" for i in range(6)), (f"gated_cross_attn_layers.{i}" for i in range(3))
    assert order == [next(blocks if place % 3 == 0 else layers) for place in range(9)]


def test_memory_is_all_that_decoding_needs():
    """Keys and values depend on the picture alone: made once, they serve every token."""
    model = tiny.make_random_model(tiny.IDEFICS1)
    features = model.encode(torch.randn(3, 3, 32, 32))
    memory = model.compute_cross_kv(features)
    assert len(memory) == model.layout.num_cross_attention_layers == 2
    for layer in memory:
        assert layer.keys.shape == layer.values.shape == (3, 5, 4, 12)
    for one, many in zip(model.compute_cross_kv(features[1:2]), memory, strict=True):
        torch.testing.assert_close(one.keys[0], many.keys[1], **CLOSE)
        torch.testing.assert_close(one.values[0], many.values[1], **CLOSE)
