"""Attention over padded batches against single sequences; the loss, first weights and dropout of training."""

import pytest
import torch

from idefics.compat.padded_attention import (
    CrossAttentionInputs,
    PaddedAttn,
    group_cross_kv_by_row,
    make_attention_mask,
)
from idefics.compat.training import add_output_dropout, initialize_module, next_token_loss, resize_rows
from idefics.nn.attention import DenseAttn, LayerCrossKV
from idefics.nn.attention_backends import EagerAttention

CPU = torch.device("cpu")
B, T, H, h, K = 3, 7, 4, 2, 6
PADDING = torch.tensor([2, 0, 4])  # tokens of padding on the left


def random_tokens():
    return torch.arange(T) >= PADDING[:, None]


def random_heads(*heads):
    return [torch.randn(B * T, count, K) for count in heads]


def pack_tokens(x):
    return x.unflatten(0, (B, T))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("backend", ["fused", "explicit"])
def test_a_padded_row_is_the_row_alone(window, backend):
    q, k, v = random_heads(H, h, h)
    options = {"backend": EagerAttention()} if backend == "explicit" else {}
    out = pack_tokens(
        PaddedAttn(B, make_attention_mask(random_tokens(), T, 0, window, CPU), **options).self_attention(
            0, q, k, v
        )
    )
    for row, padding in enumerate(PADDING.tolist()):
        alone = DenseAttn(1, sliding_window=window).self_attention(
            0, *(pack_tokens(x)[row, padding:] for x in (q, k, v))
        )
        torch.testing.assert_close(out[row, padding:], alone)
        assert not out[row, :padding].any(), "padding sees nothing"


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("new", [1, 2, 5])
def test_reading_on_is_reading_all(window, new):
    q, k, v = random_heads(H, h, h)
    whole = PaddedAttn(B, make_attention_mask(random_tokens(), T, 0, window, CPU))
    expected = pack_tokens(whole.self_attention(0, q, k, v))[:, -new:]
    past = T - new
    first = PaddedAttn(B, make_attention_mask(random_tokens()[:, :past], past, 0, window, CPU))
    first.self_attention(0, *(pack_tokens(x)[:, :past].flatten(0, 1) for x in (q, k, v)))
    second = PaddedAttn(
        B, make_attention_mask(random_tokens(), new, past, window, CPU), [first.present_kv[0]]
    )
    out = second.self_attention(0, *(pack_tokens(x)[:, past:].flatten(0, 1) for x in (q, k, v)))
    torch.testing.assert_close(out.unflatten(0, (B, new)), expected)
    torch.testing.assert_close(second.present_kv[0].keys, whole.present_kv[0].keys)


def test_masks_are_made_only_where_they_say_something():
    assert make_attention_mask(None, T, 0, None, CPU) == (None, True, None)
    assert make_attention_mask(torch.ones(B, T), T, 0, None, CPU) == (None, True, None)
    assert make_attention_mask(None, 1, T, None, CPU) == (None, False, None)
    assert make_attention_mask(None, T, 0, T, CPU).mask is None
    assert make_attention_mask(None, 2, T, None, CPU).mask.shape == (1, 1, 2, T + 2)
    assert make_attention_mask(None, T, 0, T - 1, CPU).mask.shape == (1, 1, T, T)
    padded = make_attention_mask(random_tokens(), T, 0, None, CPU)
    assert padded.mask.shape == (B, 1, T, T)
    assert torch.equal(padded.fully_masked, ~random_tokens())
    assert make_attention_mask(random_tokens(), 1, T - 1, None, CPU).fully_masked is None


def test_tokens_see_their_own_rows_pictures():
    memory = [LayerCrossKV(torch.randn(B * 2, 5, H, K), torch.randn(B * 2, 5, H, K))]
    sees = torch.rand(B, T, 2) < 0.5
    sees[:, :2] = False
    (q,) = random_heads(H)
    out = pack_tokens(
        PaddedAttn(
            B,
            make_attention_mask(None, T, 0, None, CPU),
            cross_inputs=CrossAttentionInputs(group_cross_kv_by_row(memory, B), sees),
        ).cross_attention(0, q)
    )
    for row in range(B):
        for place in range(T):
            pictures = [memory[0].keys[2 * row + p] for p in range(2) if sees[row, place, p]]
            values = [memory[0].values[2 * row + p] for p in range(2) if sees[row, place, p]]
            if not pictures:
                assert not out[row, place].any()
                continue
            scores = torch.einsum("hk,mhk->hm", pack_tokens(q)[row, place], torch.cat(pictures)) * K**-0.5
            expected = torch.einsum("hm,mhk->hk", scores.softmax(-1), torch.cat(values))
            torch.testing.assert_close(out[row, place], expected)


def test_without_pictures_cross_attention_is_zero():
    (q,) = random_heads(H)
    assert not PaddedAttn(B, make_attention_mask(None, T, 0, None, CPU)).cross_attention(0, q).any()


def test_the_loss_counts_tokens_that_stand_and_are_asked_for():
    logits, labels = torch.randn(2, 4, 9), torch.randint(0, 9, (2, 4))
    labels[0, 2] = -100
    stands = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    asked = [(0, 1), (0, 3), (1, 2), (1, 3)]
    chances = [logits[row, place - 1].log_softmax(-1)[labels[row, place]] for row, place in asked]
    expected = -torch.stack(chances).mean()
    torch.testing.assert_close(next_token_loss(logits, labels, stands), expected)
    with_past = torch.cat((torch.ones(2, 3), stands), dim=1)
    torch.testing.assert_close(next_token_loss(logits, labels, with_past), expected)
    assert next_token_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_first_weights():
    model = torch.nn.Sequential(
        torch.nn.Linear(200, 200), torch.nn.LayerNorm(200), torch.nn.Embedding(200, 200)
    )
    for module in model:
        initialize_module(module, 0.5)
    assert all(abs(model[part].weight.std() - 0.5) < 0.01 for part in (0, 2))
    assert not model[0].bias.any()
    assert (model[1].weight == 1).all()


def test_rows_added_and_taken():
    weight = torch.nn.Parameter(torch.randn(5, 3), requires_grad=False)
    grown = resize_rows(weight, 7, init_with_mean=True, std=0.1)
    assert torch.equal(grown[:5], weight)
    torch.testing.assert_close(grown[6], weight.mean(0))
    assert not grown.requires_grad
    assert torch.equal(resize_rows(weight, 2, init_with_mean=True, std=0.1), weight[:2])
    assert resize_rows(weight, 500, init_with_mean=False, std=0.1)[5:].std() < 0.2


def test_outputs_are_dropped_in_training_alone():
    module = torch.nn.Identity()
    add_output_dropout(module, 0.5)
    x = torch.ones(1000)
    assert 400 < (module(x) == 0).sum() < 600
    assert torch.equal(module.eval()(x), x)
